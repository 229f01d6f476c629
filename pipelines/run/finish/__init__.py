"""finish: ends a run without the folds that did not finish, from ensemble to report."""
