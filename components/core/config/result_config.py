"""The part of a configuration that affects a run's results, and the difference of two configurations. Pure."""

from __future__ import annotations

from typing import Any

from components.core.config.run import RunConfig

NO_EFFECT_ON_RESULTS = ("local", "cluster", "card", "promotion")
"""Sections that change where a run computes, what is reported and how its model is judged, but no result."""


def result_config(config: RunConfig) -> str:
    """The sections that affect results, as JSON: equal for two runs that compute the same."""
    return config.model_dump_json(exclude=set(NO_EFFECT_ON_RESULTS))


def differences(earlier: Any, now: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ.

    Args:
        earlier: plain data, for example a dumped configuration. A missing key counts as None.
        now: the other side.
        prefix: dotted name of the compared part.

    Returns:
        Dotted name -> (earlier value, value now). Lists are compared whole.
    """
    if isinstance(earlier, dict) and isinstance(now, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**earlier, **now}:
            found.update(differences(earlier.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {} if earlier == now else {prefix: (earlier, now)}


def first_difference(earlier: Any, now: Any) -> str:
    """The first field, by name, in which two configurations differ; empty if they are equal."""
    return min(differences(earlier, now), default="")
