"""Whether a machine, an image, a store and a cluster have what a run needs. Imports neither torch nor, without an endpoint, kfp."""
