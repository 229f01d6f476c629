"""Runs on a Kubeflow Pipelines cluster: compiled, submitted once, followed, their results fetched. Never imports torch."""
