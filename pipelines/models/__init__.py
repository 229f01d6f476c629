"""cellsignal models: lists, shows, publishes, promotes and removes published models."""
