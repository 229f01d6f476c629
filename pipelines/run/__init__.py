"""Runs on this machine: training, prediction of new plates, and the end of a run that lacks folds."""
