"""What of a configuration decides a run's results. Pure; what decides a single step's is in its own settings."""

from __future__ import annotations

from components.core.config import RunConfig

NOT_DECIDING = ("local", "cluster", "card", "promotion")
"""Sections that say where and with what a run runs, what is told of it and what its model must show afterwards; under other
values it computes the same."""


def deciding(config: RunConfig) -> str:
    """The whole configuration as JSON, but where and with what it runs: what two runs that compute the same agree in."""
    return config.model_dump_json(exclude=set(NOT_DECIDING))
