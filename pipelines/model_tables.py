"""The tables of `cellsignal models`. Rich; what is in them comes from components.core.registry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from components.core.registry.champion import Champion
from components.core.registry.model_manifest import SHORT, ModelManifest
from components.core.registry.published_models import ListedModel
from components.core.registry.removal import StoredModel
from pipelines.store.tables import shown_age, shown_size

MARK = "*"
"""Before the champion."""
LEGEND = f"well top-1, %: raw→assigned, that is without→with the prior; {MARK} champion"


def models_table(models: Sequence[ListedModel], champion: Champion | None) -> Table:
    """Models, one a line, with their scores without and with the prior."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(" model", no_wrap=True)
    table.add_column("created", no_wrap=True)
    table.add_column("run", overflow="fold", min_width=10)
    table.add_column("cell types", min_width=5)
    for score in ("out of fold", "holdout"):
        table.add_column(score, justify="right", no_wrap=True)
    for line in models:
        mark = MARK if champion and champion.now.fingerprint == line.fingerprint else " "
        model = line.manifest
        if model is None:
            table.add_row(f"{mark}{line.fingerprint[:SHORT]}", "–", "(cannot be read)", "", "", "")
            continue
        table.add_row(
            f"{mark}{model.short}",
            f"{model.created.astimezone(UTC):%Y-%m-%d}",
            f"{model.run}{' (partial)' if model.partial else ''}",
            " ".join(model.cell_types),
            _both(model, "out_of_fold"),
            _both(model, "holdout"),
        )
    return table


def facts_table(model: ModelManifest, champion: Champion | None) -> Table:
    """What is known of one model."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    vocabulary, config = model.vocabulary, model.run_config()
    started = f", trained on from {config.init_from}" if config.init_from else ""
    design = f"{len(model.design.groups)} groups" if model.design else "none"
    wells = f", {len(model.taught.wells):,} single wells" if model.taught.wells else ""
    size = sum(file.size for file in model.networks)
    rows = {
        "fingerprint": model.fingerprint,
        "champion": _standing(model, champion),
        "run": f"{model.run} in {model.store}{started}",
        "created": f"{model.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "code": model.code_version or "not known",
        "screen": f"{model.lineage.get('screen') or 'not known'} (manifest {model.screen[:16]})",
        "images": f"{model.channels} channels, {model.image_size} x {model.image_size} pixels",
        "folds": "; ".join(f"{name} {' '.join(map(str, numbers))}" for name, numbers in model.folds.items())
        + (" (others are missing)" if model.partial else ""),
        "networks": f"{len(model.networks)}, {shown_size(size)}: {', '.join(model.backbones)}, {model.predicted_by}",
        "classes": f"{len(vocabulary.treatments):,} treatments, {len(vocabulary.positives)} positive and "
        f"{len(vocabulary.negatives)} negative controls",
        "plate design": design,
        "labels of": f"{', '.join(model.taught.experiments) or 'no whole experiment'}{wells}",
        "unlabelled": ", ".join(model.unlabelled) or "none",
        "held out": ", ".join(model.held_out) or "none",
        "temperatures": "; ".join(
            f"{name} {' '.join(f'{stage} {value:.2f}' for stage, value in of.items())}"
            for name, of in model.temperatures.items()
        )
        or "not fitted",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def history_table(champion: Champion) -> Table:
    """All champions, the present one first."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("generation", justify="right", no_wrap=True)
    table.add_column("model", no_wrap=True)
    table.add_column("promoted (UTC)", no_wrap=True)
    table.add_column("by", overflow="fold")
    table.add_column("why", overflow="fold", min_width=16)
    for promotion in champion.promotions:
        back = f"(back to {promotion.restores}) " if promotion.restores is not None else ""
        at = f"{promotion.at.astimezone(UTC):%Y-%m-%d %H:%M}"
        table.add_row(
            str(promotion.generation),
            promotion.fingerprint[:SHORT],
            at,
            escape(promotion.by),
            escape(f"{back}{promotion.why}"),
        )
    return table


def removable_table(items: Sequence[StoredModel]) -> Table:
    """What would go."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("what", no_wrap=True)
    table.add_column("of", no_wrap=True)
    table.add_column("run", overflow="fold")
    for name in ("objects", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for item in items:
        age = shown_age(now - item.newest)
        table.add_row(
            item.kind,
            item.fingerprint[:SHORT],
            item.run or "–",
            f"{item.objects:,}",
            shown_size(item.size),
            age,
        )
    return table


def _standing(model: ModelManifest, champion: Champion | None) -> str:
    promotions = champion.promotions if champion else ()
    own = [promotion for promotion in promotions if promotion.fingerprint == model.fingerprint]
    if champion and own[:1] == [champion.now]:
        return f"since {own[0].at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, generation {own[0].generation}"
    return f"was, generation {', '.join(str(promotion.generation) for promotion in reversed(own))}" if own else "never"


def _both(model: ModelManifest, score: str) -> str:
    found = [model.score(score, stage) for stage in ("raw", "assigned")]
    known = [f"{100 * value:.1f}" for value in found if value is not None]
    return "→".join(known) or "–"
