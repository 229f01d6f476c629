"""The rungs of the growth chart as changes of one configuration. Pure.

The configuration given has everything on; it is the last rung. Every other rung is that configuration with parts switched
off, so that each differs from the one before by configuration alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from components.core.config import RunConfig, differences, parse
from components.core.errors import InputError

Route = Literal["standardise", "adabn", "aside"]
"""By standardised pixels; by AdaBN in their place; and single parts that are on neither way."""


@dataclass(frozen=True)
class Rung:
    """One point of the chart.

    Attributes:
        name: in growth.json.
        label: on the chart.
        route: which of the ways up.
        config: the whole configuration.
        difference: fields that changed from the rung before, with the values before and now.
        published: the reference's public score.
    """

    name: str
    label: str
    route: Route
    config: RunConfig
    difference: Mapping[str, tuple[Any, Any]]
    published: float | None


def rungs(full: RunConfig) -> list[Rung]:
    """The rungs of both routes and the asides; each route starts at the baseline, which is there once.

    Args:
        full: with everything on.

    Raises:
        InputError: it lacks a part that a rung adds.
    """
    _check(full)
    given = full.model_dump(mode="json")
    off = {
        "standardise.domain": "global",
        "batch_norm.domain": "none",
        "head.kind": "softmax",
        "mean_teacher.enabled": False,
        "backbones": given["backbones"][:1],
        "folds.train": [0],
    }
    pairs = {"mean_teacher.enabled": True, "backbones": given["backbones"]}
    labels = given["mean_teacher"]["pseudo_labels"]
    data: list[tuple[str, str, float | None, Mapping[str, Any]]] = [
        ("baseline", "baseline", 0.528, {}),
        ("experiment", "domain:\nexperiment", 0.600, {"standardise.domain": "experiment"}),
        ("plate", "domain:\nplate", 0.700, {"standardise.domain": "plate"}),
        ("arcface", "+ ArcFace", 0.850, {"head.kind": "arcface"}),
        (
            "mean_teacher",
            "+ mean\nteacher",
            0.900,
            {"mean_teacher.enabled": True, "mean_teacher.pseudo_labels": "none"},
        ),
        (
            "dual_pseudo_labels",
            "dual Xception,\npseudo-labels",
            0.950,
            {"backbones": pairs["backbones"], "mean_teacher.pseudo_labels": labels},
        ),
        ("folds", "folds", None, {"folds.train": given["folds"]["train"]}),
    ]
    adabn: list[tuple[str, str, float | None, Mapping[str, Any]]] = [
        ("adabn_experiment", "domain:\nexperiment", 0.600, {"batch_norm.domain": "experiment"}),
        ("adabn_plate", "domain:\nplate", 0.700, {"batch_norm.domain": "plate"}),
        ("adabn_arcface", "+ ArcFace", 0.850, {"head.kind": "arcface"}),
        (
            "adabn_mean_teacher",
            "+ mean\nteacher",
            0.900,
            {"mean_teacher.enabled": True, "mean_teacher.pseudo_labels": "none"},
        ),
    ]
    asides: list[tuple[str, str, str, Mapping[str, Any]]] = [
        ("both_arcface", "arcface", "ArcFace, standardised\nand AdaBN", {"batch_norm.domain": "plate"}),
        ("pseudo_labels", "mean_teacher", "pseudo-labels,\none backbone", {"mean_teacher.pseudo_labels": labels}),
    ]
    base = _changed(given, off)
    found, before = [], base
    for name, label, published, change in data:
        now = _changed(before, change)
        found.append(_rung(name, label, "standardise", before, now, published))
        before = now
    before = base
    for name, label, published, change in adabn:
        now = _changed(before, change)
        found.append(_rung(name, label, "adabn", before, now, published))
        before = now
    known = {rung.name: rung.config.model_dump(mode="json") for rung in found}
    for name, after, label, change in asides:
        found.append(_rung(name, label, "aside", known[after], _changed(known[after], change), None))
    return found


def _rung(name: str, label: str, route: Route, before: Any, now: Any, published: float | None) -> Rung:
    difference = differences(before, now)
    if "backbones" in difference:
        # Networks by name: their widths are in the configuration beside.
        difference["backbones"] = tuple([b["name"] for b in side] for side in difference["backbones"])  # type: ignore[assignment]
    return Rung(name, label, route, parse(RunConfig, now, source=f"growth, {name}"), difference, published)


def _check(full: RunConfig) -> None:
    wanted = {
        "standardise.domain": (full.standardise.domain, "plate"),
        "batch_norm.domain": (full.batch_norm.domain, "none"),
        "head.kind": (full.head.kind, "arcface"),
        "mean_teacher.enabled": (full.mean_teacher.enabled, True),
    }
    for field, (given, expected) in wanted.items():
        if given != expected:
            raise InputError(f"growth: the configuration must be the last rung, with {field} {expected}; got {given}")
    if not full.has_pseudo_labels:
        raise InputError(
            "growth: the configuration must be the last rung, with mean_teacher.pseudo_labels hard or soft"
        )
    if full.mean_teacher.fused_labels:
        raise InputError("growth: leave mean_teacher.fused_labels out; every seed has a screen of its own")
    if full.init_from:
        raise InputError("growth: leave init_from out; every rung starts at random")
    if len(full.backbones) < 2:
        raise InputError("growth: the configuration must have two backbones for the rung `dual_pseudo_labels`")
    if len(full.folds.trained) < 2 or full.folds.trained[0] != 0:
        raise InputError("growth: the configuration must train fold 0 and another for the rung `folds`")


def _changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped configuration with dotted fields changed."""
    new: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for field, value in changes.items():
        section, _, name = field.partition(".")
        if name:
            new[section] = {**new[section], name: value}
        else:
            new[section] = value
    return new
