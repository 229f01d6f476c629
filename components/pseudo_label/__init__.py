"""pseudo_label: mean teacher with prior pseudo-labels, then the logits of the fold."""
