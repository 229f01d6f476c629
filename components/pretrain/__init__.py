"""pretrain: one backbone on all cell types of a fold."""
