"""Fixtures of this folder."""

from __future__ import annotations

from tests.components.core.registry.finished_run import published, template

__all__ = ["published", "template"]
