"""Object storage, manifests and the embedded server."""
