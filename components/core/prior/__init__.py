"""The prior of the plate design: groups, balancing, assignment, pseudo-labels. Pure NumPy and SciPy."""
