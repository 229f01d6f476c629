"""Settings that a configuration has and does not use, and images that its networks cannot take. Imports pydantic only.

Only configurations that people write are refused for them: stored ones of earlier runs stay readable, and studies switch parts
off whose settings remain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from components.core.config.method import BackboneConfig, MeanTeacherConfig

if TYPE_CHECKING:
    from components.core.config.run import RunConfig

FIELDS_OF_KINDS = {
    "xception": ("stem", "second_stride", "entry", "middle_blocks", "exit", "depthwise_init"),
    "plain": ("stages",),
}


def unused_settings(config: RunConfig) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The location of each mistake, and what to change.

    Args:
        config: a configuration as written; fields that have their defaults may be those of a dump.
    """
    screen, teacher = config.screen, config.mean_teacher
    side = screen.crop or (screen.input_side if screen.image_size else None)
    for n, backbone in enumerate(config.backbones):
        where = f"backbone {backbone.name}"
        for kind, fields in FIELDS_OF_KINDS.items():
            unread = [field for field in fields if getattr(backbone, field) != _default(field)]
            if kind != backbone.kind and unread:
                names = " and ".join(unread)
                yield (
                    ("backbones", n),
                    f"{where}: {names} {'is' if len(unread) == 1 else 'are'} of kind {kind}; set kind to {kind}, or give the "
                    f"backbone without {names}",
                )
        if side is not None and side < backbone.smallest_input:
            yield (
                ("backbones", n),
                f"{where}: {len(backbone.stages)} stages take images from {backbone.smallest_input} x {backbone.smallest_input} "
                f"pixels on, but networks see {side} x {side} (screen.image_size, bin and crop); give fewer stages or larger "
                "images",
            )
    if config.standardise.robust and config.standardise.domain == "none":
        yield ("standardise",), "standardise: robust has no meaning with domain none; set robust to false, or a domain"
    if config.batch_norm.statistics == "controls" and config.batch_norm.domain == "none":
        yield (
            ("batch_norm",),
            "batch_norm: statistics controls has no meaning with domain none; set statistics to all, or a domain",
        )
    if teacher.pseudo_label_choice == "assignment" and teacher.pseudo_labels == "none":
        yield (
            ("mean_teacher",),
            "mean_teacher: pseudo_label_choice assignment is of hard pseudo-labels; set pseudo_labels to hard, or "
            "pseudo_label_choice to argmax",
        )
    if config.embeddings.sphering == "controls" and not config.embeddings.enabled:
        yield ("embeddings",), "embeddings: sphering needs embeddings; set enabled to true, or sphering to none"
    usual = MeanTeacherConfig().ratio.items()
    for cell_type, ratio in teacher.ratio.items():
        if cell_type not in screen.cell_types and (cell_type, ratio) not in usual:
            yield (
                ("mean_teacher", "ratio", cell_type),
                f"mean_teacher.ratio names {cell_type!r}, which is not in screen.cell_types; correct one of them",
            )


def _default(field: str) -> object:
    return BackboneConfig.model_fields[field].default
