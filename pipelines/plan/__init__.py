"""cellsignal plan: pods, hours, bytes and cost of a run before it starts. Pure arithmetic over the DAG."""
