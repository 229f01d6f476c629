"""A local run whose tasks are containers: what they see, what they may take, how they end."""
