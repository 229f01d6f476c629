"""ensemble: logits of the folds averaged, by cell type."""
