"""What a task reads from object storage and writes to it: bytes and requests. Pure arithmetic.

Counted: packed plates, sites that a task's memory does not hold, manifests, weights, logits, embeddings, checkpoints. Outputs
are written twice, to the finished outputs that a second run finds and to the pipeline's artifacts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.core.config import CHANNELS, RunConfig
from components.core.screen.ome_zarr import plate_documents
from pipelines.plan.dag import PlannedTask
from pipelines.plan.machines import Machines
from pipelines.plan.network_cost import NetworkCost
from pipelines.plan.screens import ScreenWells, fold_masks
from pipelines.plan.site_passes import Passes

COPIES = 2
"""Finished outputs and pipeline artifacts."""
MANIFEST_BYTES = 240
"""Of a manifest, a site: measured on the demo's."""
EMBEDDING_SHARE = 0.93
"""Bytes of a Parquet file of embeddings, of its float32 numbers: measured on the demo's."""
PART = 32 * 2**20
"""Bytes of one request of a large upload."""


@dataclass(frozen=True)
class Transfer:
    """Traffic with object storage.

    Attributes:
        read: bytes.
        written: bytes.
        gets: reading requests.
        puts: writing requests.
        sites: packed sites among what is read.
        deleted: bytes among those written that the run itself deletes: checkpoints.
    """

    read: float = 0.0
    written: float = 0.0
    gets: float = 0.0
    puts: float = 0.0
    sites: float = 0.0
    deleted: float = 0.0

    def __add__(self, other: Transfer) -> Transfer:
        return Transfer(
            self.read + other.read,
            self.written + other.written,
            self.gets + other.gets,
            self.puts + other.puts,
            self.sites + other.sites,
            self.deleted + other.deleted,
        )


def site_bytes(config: RunConfig) -> int:
    """Bytes of one decoded site."""
    return len(CHANNELS) * config.screen.image_size**2


def packed_site_bytes(config: RunConfig, machines: Machines) -> float:
    """Bytes of one packed site, on average."""
    return site_bytes(config) * machines.cpu.packed_share[config.pack.codec]


def packing(config: RunConfig, wells: ScreenWells, machines: Machines) -> Transfer:
    """What normalize does with a screen that was never packed.

    Each plate: a look for its record and for both kinds of leads to it; then sites, Zarr metadata, record and lead.
    """
    plates = wells.screen.plates
    first = plates[0]
    fields = [(well.well, list(range(1, wells.sites + 1))) for well in first.wells]
    windows = [(0, 1)] * len(CHANNELS)
    documents = [
        len(body) for _, body in plate_documents(first.name, fields, config.screen.image_size, config.pack, windows)
    ]
    written, puts = 0.0, 0
    for plate in plates:
        sites = len(plate.wells) * wells.sites
        rows = len({well.well[0] for well in plate.wells})
        metadata = 2 * sites + len(plate.wells) + rows + 1
        puts += sites + metadata + 2
        written += sites * packed_site_bytes(config, machines) + metadata * sum(documents) / len(documents)
    of_run = _manifest_bytes(wells, holdout=False) + _manifest_bytes(wells, holdout=True)
    records = Transfer(written=COPIES * of_run, puts=4 + 3)
    return Transfer(written=written, gets=3 * len(plates), puts=puts) + records


def sites_read(config: RunConfig, wells: ScreenWells, task: PlannedTask, passes: Sequence[Passes]) -> Transfer:
    """Sites that a task fetches: each once, and again each time that its memory does not hold it.

    Its memory keeps the first sites that come, so that once it is full a site is there with the probability that it is of
    those. Bytes are left to the caller.
    """
    capacity = config.loader.cache_gib * 2**30 // site_bytes(config)
    fetched = 0.0
    for group in ("screen", "holdout"):
        reads = sum(p.sites for p in passes if p.group == group)
        known = min(float(_distinct(config, wells, task, group == "holdout")), float(reads))
        kept = min(capacity, known)
        fetched += kept + (reads - kept) * (1.0 - kept / known) if known else 0.0
    return Transfer(gets=fetched, sites=fetched)


def task_transfer(
    config: RunConfig,
    wells: ScreenWells,
    machines: Machines,
    costs: Mapping[str, NetworkCost],
    task: PlannedTask,
    passes: Sequence[Passes],
) -> Transfer:
    """All traffic of one task."""
    if task.step == "normalize":
        return packing(config, wells, machines)
    manifest = _manifest_bytes(wells, holdout=False)
    held_out = _manifest_bytes(wells, holdout=True)
    one = sum(cost.weight_bytes for cost in costs.values())
    fold = _fold_logits(config, wells, task.cell_type) if task.cell_type else 0.0
    if task.step == "pretrain":
        read, files = [manifest], [float(costs[task.backbone or ""].weight_bytes), 0.0, 0.0]
    elif task.step == "finetune":
        read, files = [manifest, *(float(cost.weight_bytes) for cost in costs.values())], _pairs(costs)
    elif task.step in ("pseudo_label", "infer"):
        before = 2 * one if config.mean_teacher.enabled else one
        embedded = [_embedded(config, wells, cost, task) for cost in costs.values() if config.embeddings.enabled]
        files = [fold, 0.0, *embedded, *(_pairs(costs) if task.step == "pseudo_label" else [])]
        read = [manifest, held_out, float(before)]
    elif task.step == "ensemble":
        read, files = [manifest, *[fold] * len(config.folds.trained)], [fold * len(config.folds.trained) / 2]
    elif task.step == "assign":
        read, files = [manifest, held_out, fold * len(config.folds.trained) / 2], [0.0]
    else:
        read, files = [manifest, held_out], [0.0]
    once = task.step in ("pretrain", "finetune", "pseudo_label", "infer")  # kept as finished outputs too
    copies = COPIES if once else 1
    sites = sites_read(config, wells, task, passes)
    return sites + Transfer(
        read=sum(read) + sites.sites * packed_site_bytes(config, machines),
        written=copies * sum(files),
        gets=len(read) + once,
        puts=copies * sum(_puts(size) for size in files) + once,
    )


def checkpoints(config: RunConfig, costs: Mapping[str, NetworkCost], task: PlannedTask, seconds: float) -> Transfer:
    """What a training task saves by time, each checkpoint in the place of the one before; none of a prediction's pieces.

    pretrain saves its network, Adam's two moments and the best weights so far; a mean teacher's task, which has no moments,
    students and teachers, and their best.

    Args:
        config: how often.
        costs: of the networks.
        task: which task.
        seconds: that it works.
    """
    if task.step not in ("pretrain", "finetune", "pseudo_label"):
        return Transfer()
    names = costs if task.backbone is None else (task.backbone,)
    size = 4.0 * sum(costs[name].weight_bytes for name in names)
    count = int(seconds / max(1.0, config.compute.checkpoint_seconds))
    return Transfer(written=count * size, deleted=count * size, puts=count * (_puts(size) + 1))


def _distinct(config: RunConfig, wells: ScreenWells, task: PlannedTask, holdout: bool) -> int:
    """Different sites that a task may read."""
    if task.fold is None:
        return 0
    if holdout:
        assert task.cell_type is not None or task.step == "pretrain"
        return int((wells.holdout_W & wells.of_type(task.cell_type or "")).sum()) * wells.sites
    masks = fold_masks(config, wells, task.fold, task.cell_type)
    chosen_W = masks.training | masks.validation
    if task.cell_type is not None:
        chosen_W = (
            wells.of_type(task.cell_type) & ~wells.holdout_W if task.step == "infer" else chosen_W | masks.unlabelled
        )
    return int(chosen_W.sum()) * wells.sites


def _manifest_bytes(wells: ScreenWells, holdout: bool) -> float:
    return float(MANIFEST_BYTES * wells.sites * int((wells.holdout_W == holdout).sum()))


def _pairs(costs: Mapping[str, NetworkCost]) -> list[float]:
    """Files of students and teachers, history and meta."""
    return [*(float(cost.weight_bytes) for cost in costs.values() for _ in range(2)), 0.0, 0.0]


def _fold_logits(config: RunConfig, wells: ScreenWells, cell_type: str) -> float:
    """Bytes of a fold's logits: its share of the labelled wells, all unlabelled and held-out ones."""
    of_type_W = wells.of_type(cell_type) & wells.treatment_W
    validated = int((of_type_W & wells.labelled_W).sum()) / config.folds.count
    others = int((of_type_W & ~wells.labelled_W).sum())
    return 4.0 * wells.classes * (validated + others)


def _embedded(config: RunConfig, wells: ScreenWells, cost: NetworkCost, task: PlannedTask) -> float:
    return 4.0 * EMBEDDING_SHARE * cost.embedding * int(wells.of_type(task.cell_type or "").sum())


def _puts(size: float) -> int:
    """Requests of an upload: one, or its parts with a beginning and an end."""
    parts = -(-int(size) // PART)
    return 1 if parts <= 1 else parts + 2
