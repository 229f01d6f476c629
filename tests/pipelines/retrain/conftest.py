"""Fixtures of this folder."""

from __future__ import annotations

from tests.components.core.registry.finished_run import model, published, template

__all__ = ["model", "published", "template"]
