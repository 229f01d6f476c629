"""The images of the steps: built by an engine, sent to a registry."""
