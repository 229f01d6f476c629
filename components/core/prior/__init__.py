"""What the plate design says about the labels: groups, balancing, assignment. Pure NumPy and SciPy."""
