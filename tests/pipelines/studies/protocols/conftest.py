"""A screen without images and a configuration, as the command line's tests have them."""

from tests.pipelines.conftest import config_file, tables

__all__ = ["config_file", "tables"]
