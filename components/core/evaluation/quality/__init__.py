"""Quality control of new plates from pixels, histograms and confidences alone; no label is needed. Pure NumPy."""
