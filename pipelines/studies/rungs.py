"""The rungs of the growth chart as changes of one configuration. Pure.

The user's configuration has everything on; it is the last rung. Every other rung is that configuration with parts switched
off, so that rungs differ only by their configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from components.core.config import RunConfig, differences, parse
from components.core.errors import InputError

Route = Literal["standardise", "adabn", "aside"]
"""By standardised pixels; by AdaBN instead; and rungs aside from both."""


@dataclass(frozen=True)
class Rung:
    """One point of the chart."""

    name: str  # in growth.json
    label: str  # on the chart
    route: Route  # the route that it is on
    config: RunConfig
    # fields that changed from the rung before, with the values before and after
    difference: Mapping[str, tuple[Any, Any]]
    published: float | None  # the reference's public score

    @property
    def title(self) -> str:
        """Its route and label in one line."""
        route = {"standardise": "", "adabn": "AdaBN, ", "aside": "aside, "}[self.route]
        return route + self.label.replace("\n", " ")


def rungs(full: RunConfig) -> list[Rung]:
    """The rungs of both routes and the asides; both routes start at the baseline, which is listed once.

    Args:
        full: with everything on.

    Raises:
        InputError: it lacks a part that a rung adds.
    """
    _check(full)
    last = full.model_dump(mode="json")
    off = {
        "standardise.domain": "global",
        "batch_norm.domain": "none",
        "head.kind": "softmax",
        "mean_teacher.enabled": False,
        "backbones": last["backbones"][:1],
        "folds.train": [0],
    }
    labels = last["mean_teacher"]["pseudo_labels"]
    teacher = {"mean_teacher.enabled": True, "mean_teacher.pseudo_labels": "none"}
    arcface = {"head.kind": "arcface"}
    dual = {"backbones": last["backbones"], "mean_teacher.pseudo_labels": labels}
    # Name, label, published score, the rung before (None: the one above), and the change from it.
    data: list[tuple[Route, str, str, float | None, str | None, Mapping[str, Any]]] = [
        ("standardise", "baseline", "baseline", 0.528, None, {}),
        ("standardise", "experiment", "domain:\nexperiment", 0.600, None, {"standardise.domain": "experiment"}),
        ("standardise", "plate", "domain:\nplate", 0.700, None, {"standardise.domain": "plate"}),
        ("standardise", "arcface", "+ ArcFace", 0.850, None, arcface),
        ("standardise", "mean_teacher", "+ mean\nteacher", 0.900, None, teacher),
        ("standardise", "dual_pseudo_labels", "dual Xception,\npseudo-labels", 0.950, None, dual),
        ("standardise", "folds", "folds", None, None, {"folds.train": last["folds"]["train"]}),
        ("adabn", "adabn_experiment", "domain:\nexperiment", 0.600, "baseline", {"batch_norm.domain": "experiment"}),
        ("adabn", "adabn_plate", "domain:\nplate", 0.700, None, {"batch_norm.domain": "plate"}),
        ("adabn", "adabn_arcface", "+ ArcFace", 0.850, None, arcface),
        ("adabn", "adabn_mean_teacher", "+ mean\nteacher", 0.900, None, teacher),
        (
            "aside", "both_arcface", "ArcFace, standardised\nand AdaBN", None, "arcface",
            {"batch_norm.domain": "plate"},
        ),
        (
            "aside", "pseudo_labels", "pseudo-labels,\none backbone", None, "mean_teacher",
            {"mean_teacher.pseudo_labels": labels},
        ),
    ]  # fmt: skip
    found: list[Rung] = []
    known: dict[str, dict[str, Any]] = {}
    before = _changed(last, off)
    for route, name, label, published, parent, change in data:
        before = known[parent] if parent else before
        now = known[name] = _changed(before, change)
        difference = differences(before, now)
        if "backbones" in difference:  # by name: the networks are in the configuration, too
            difference["backbones"] = tuple([b["name"] for b in side] for side in difference["backbones"])  # type: ignore[assignment]
        found.append(Rung(name, label, route, parse(RunConfig, now, source=f"growth, {name}"), difference, published))
        before = now
    return found


def _check(full: RunConfig) -> None:
    expected = {
        "standardise.domain": (full.standardise.domain, "plate"),
        "batch_norm.domain": (full.batch_norm.domain, "none"),
        "head.kind": (full.head.kind, "arcface"),
        "mean_teacher.enabled": (full.mean_teacher.enabled, True),
    }
    for field, (value, required) in expected.items():
        if value != required:
            raise InputError(f"growth: the configuration must be the last rung, with {field} {required}; got {value}")
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
