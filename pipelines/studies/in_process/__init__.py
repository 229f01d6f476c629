"""Whole runs in a few worker processes of this machine, without KFP: for programs that train many related configurations."""
