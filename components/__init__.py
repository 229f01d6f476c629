"""One folder a DAG step, plus the core they share."""
