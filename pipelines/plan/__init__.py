"""What a run will take, before anything is started: work, hours, bytes, requests, money. Pure arithmetic over the DAG."""
