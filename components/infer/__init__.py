"""infer: logits of a fold's wells by trained networks."""
