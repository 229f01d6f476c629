"""report: predictions, metrics and one self-contained page."""
