"""The container images of the components, shared by their signatures. Imports nothing.

Both contain this package and its dependencies, so a task installs nothing when it starts. The tag is that of this version; a
compiled pipeline pins digests instead.
"""

VERSION = "0.1.0"
_BAKED = {"packages_to_install": [], "install_kfp_package": False}

CPU = {"base_image": f"cellsignal-cpu:{VERSION}", **_BAKED}
"""Arguments of a component that does not use torch."""

GPU = {"base_image": f"cellsignal-gpu:{VERSION}", **_BAKED}
"""Arguments of a component that trains or predicts."""
