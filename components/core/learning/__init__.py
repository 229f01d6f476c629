"""Networks, training and inference on torch."""
