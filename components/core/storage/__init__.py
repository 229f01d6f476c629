"""Object storage: folders and buckets, manifests, finished outputs, run records."""
