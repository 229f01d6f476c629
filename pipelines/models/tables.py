"""The tables of `cellsignal models`. Rich only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from components.core.evaluation.table import escaped, markdown_table
from components.core.registry.champion import Champion
from components.core.registry.model_manifest import SHORT, ModelManifest
from components.core.registry.removal import fingerprint_of
from components.core.screen.plane_header import pixels
from components.core.storage.garbage import StoredGroup
from pipelines.store.tables import shown_age

_PLAIN: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
LEGEND = "well top-1, %: raw→assigned, that is without→with the prior; * champion"


def models_table(models: Sequence[ModelManifest], unreadable: Iterable[str], champion: Champion | None) -> Table:
    """Models, one per line, with their scores without and with the prior; first those whose manifest cannot be read."""

    def both(model: ModelManifest, score: str) -> str:
        stages = model.scores.get(score, {})
        found = [stages.get(stage, {}).get("overall") for stage in ("raw", "assigned")]
        return "→".join(f"{100 * value:.1f}" for value in found if value is not None) or "–"

    def marked(fingerprint: str) -> str:
        mark = "*" if champion and champion.now.fingerprint == fingerprint else " "
        return f"{mark}{fingerprint[:SHORT]}"

    table = Table(**_PLAIN)
    table.add_column(" model", no_wrap=True)
    table.add_column("created", no_wrap=True)
    table.add_column("run", overflow="fold", min_width=10)
    table.add_column("cell types", min_width=5)
    for score in ("out of fold", "holdout"):
        table.add_column(score, justify="right", no_wrap=True)
    for fingerprint in unreadable:
        table.add_row(marked(fingerprint), "–", "(cannot be read)", "", "", "")
    for model in models:
        table.add_row(
            marked(model.fingerprint),
            f"{model.created.astimezone(UTC):%Y-%m-%d}",
            f"{model.run}{' (partial)' if model.partial else ''}",
            " ".join(model.cell_types),
            both(model, "out_of_fold"),
            both(model, "holdout"),
        )
    return table


def facts_table(model: ModelManifest, champion: Champion | None) -> Table:
    """The facts about one model."""
    own = [each for each in (champion.promotions if champion else ()) if each.fingerprint == model.fingerprint]
    standing = f"was, generation {', '.join(str(each.generation) for each in reversed(own))}" if own else "never"
    if champion and champion.now in own:
        standing = f"since {champion.now.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, generation {champion.now.generation}"
    vocabulary, config = model.vocabulary, model.run_config()
    count = sum(map(len, model.taught.wells.values()))
    wells = f", {count:,} single wells" if count else ""
    temperatures = (
        f"{name} {' '.join(f'{stage} {value:.2f}' for stage, value in stages.items())}"
        for name, stages in model.temperatures.items()
    )
    rows = {
        "fingerprint": model.fingerprint,
        "champion": standing,
        "run": f"{model.run} in {model.store}{f', started from {config.init_from}' if config.init_from else ''}",
        "created": f"{model.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "code": model.code_version or "not known",
        "screen": f"{model.lineage.get('screen') or 'not known'} (manifest {model.screen[:16]})",
        "images": f"{len(model.channels)} channels ({', '.join(model.channels)}), {pixels(model.image_shape)}, {model.dtype}",
        "folds": "; ".join(f"{name} {' '.join(map(str, numbers))}" for name, numbers in model.folds.items())
        + (" (others are missing)" if model.partial else ""),
        "networks": f"{len(model.networks)}, {decimal(sum(file.size for file in model.networks))}: "
        f"{', '.join(model.backbones)}, {model.predicted_by}",
        "classes": f"{len(vocabulary.treatments):,} treatments, {len(vocabulary.positives)} positive and "
        f"{len(vocabulary.negatives)} negative controls",
        "plate design": f"{len(model.design.groups)} groups" if model.design else "none",
        "labels of": f"{', '.join(model.taught.experiments) or 'no whole experiment'}{wells}",
        "unlabelled": ", ".join(model.unlabelled) or "none",
        "held out": ", ".join(model.held_out) or "none",
        "temperatures": "; ".join(temperatures) or "not fitted",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def history_table(champion: Champion) -> Markdown:
    """All champions, the present one first."""
    rows = []
    for each in champion.promotions:
        back = f"(back to {each.restores}) " if each.restores is not None else ""
        at = f"{each.at.astimezone(UTC):%Y-%m-%d %H:%M}"
        rows.append(
            [str(each.generation), each.fingerprint[:SHORT], at, escaped(each.by), escaped(f"{back}{each.why}")]
        )
    header = ("generation", "model", "promoted (UTC)", "by", "why")
    return Markdown(markdown_table(header, rows, labels=len(header)))


def removable_table(items: Sequence[StoredGroup]) -> Table:
    """What would be removed."""
    table = Table(**_PLAIN)
    table.add_column("what", no_wrap=True)
    table.add_column("model", no_wrap=True)
    table.add_column("run", overflow="fold")
    for name in ("objects", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in items:
        table.add_row(
            item.kind,
            fingerprint_of(item)[:SHORT],
            item.belongs_to or "–",
            f"{item.objects:,}",
            decimal(item.size),
            shown_age(item.newest),
        )
    return table
