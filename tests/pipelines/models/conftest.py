"""Fixtures of this folder."""

from __future__ import annotations

from tests.components.core.registry.finished_run import template

__all__ = ["template"]
