"""finetune: mean teacher on one cell type of a fold, both backbones."""
