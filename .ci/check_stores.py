"""Fails if a fold that was trained with one store classifies its wells differently than with another.

`check_stores.py DEMO OTHER`: OTHER holds the results of the demo with one fold, DEMO those of all folds.
"""

import sys
from pathlib import Path

import pandas as pd

demo, other = (pd.read_csv(Path(folder) / "predictions_oof.csv", index_col="id_code") for folder in sys.argv[1:])
if other.empty or not set(other.index) < set(demo.index):
    sys.exit(f"{len(other)} of {len(demo)} wells are out of fold in one fold")
# Temperatures and plate groups, which decide the other columns, are fitted on all folds.
if different := int((other["raw_sirna"] != demo.loc[other.index, "raw_sirna"]).sum()):
    sys.exit(f"{different} of {len(other)} wells are classified differently")
print(f"{len(other)} wells of the fold are classified alike with both stores")
