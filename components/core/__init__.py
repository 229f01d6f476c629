"""What the steps share: importable and testable without Kubeflow Pipelines."""
