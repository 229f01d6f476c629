"""The container images that all components run in. Imports nothing."""

VERSION = "0.1.0"
"""The version of this package, and the images' tag; a compiled pipeline pins digests instead."""

CPU, GPU = f"cellsignal-cpu:{VERSION}", f"cellsignal-gpu:{VERSION}"
"""Images with this package and its dependencies: a task installs nothing when it starts. Only the second has torch."""
