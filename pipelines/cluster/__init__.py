"""A run on a Kubeflow Pipelines cluster: checked, uploaded, started once, followed, its results fetched. Never imports torch."""
