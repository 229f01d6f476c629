"""infer: logits of a fold's wells by networks that are trained already."""
