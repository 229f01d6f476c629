"""ensemble: logits averaged over folds, by cell type."""
