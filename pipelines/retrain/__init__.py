"""cellsignal retrain: has anything changed, the challenger's run, its comparison with the champion, promotion."""
