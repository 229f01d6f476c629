"""The container images of the steps: built by an engine, pushed to a registry, recorded by digest."""
