"""The configuration of a run: typed, frozen, self-validating, loaded from YAML. Imports neither torch nor kfp.

One YAML file describes a run completely; `RunConfig.load` reads it, `--set KEY=VALUE` changes single fields, and every
step receives only the sections it reads (`RunConfig.section`), so that a change elsewhere does not make it run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.core.config_file import apply_change, find_config, read_yaml
from components.core.config_file import parse as parse  # every step reads its section with both
from components.core.errors import InputError

CHANNELS = ("nuclei", "ER", "actin", "nucleoli", "mitochondria", "Golgi")
"""The six stains in the order of the file names' w1..w6 (RxRx1)."""

Domain = Literal["none", "global", "cell_type", "experiment", "plate"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    """Base of every section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class ScreenConfig(Frozen):
    """What the images of the screen must look like."""

    cell_types: tuple[str, ...] = Field(
        ("HUVEC", "RPE", "HEPG2", "U2OS"), min_length=1, description="cell types, as the experiments' name prefixes"
    )
    image_size: Count = Field(512, description="side of the square images, pixels")
    sites: Count = Field(2, description="imaged sites of a well; a well may miss some, not all")
    holdout_experiments: tuple[str, ...] = Field(
        (), description="labelled experiments that no step but prediction reads, not even as unlabelled images"
    )
    controls: Literal["all", "training"] = Field(
        "all", description="which labelled controls join training: of every experiment, or of training experiments only"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.cell_types)) != len(self.cell_types):
            raise ValueError(f"cell_types must be different from each other, got {list(self.cell_types)}")
        return self


class FoldsConfig(Frozen):
    """Cross-validation folds, grouped by experiment and stratified by cell type."""

    count: Annotated[int, Field(ge=2)] = Field(5, description="number of folds")
    known: dict[str, int] = Field(
        default_factory=dict, description="folds of experiments from an earlier run, which they keep (append-only)"
    )
    train: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="folds to train, for example [0]; null trains all of them"
    )
    split: Literal["experiment", "well"] = Field(
        "experiment", description="what a fold holds out: whole experiments, or single treatment wells at random"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0,
        description="another seed deals the experiments or wells to the folds differently; 0 takes experiments in order",
    )

    @model_validator(mode="after")
    def _trained(self) -> Self:
        if self.train is not None:
            if not self.train or len(set(self.train)) != len(self.train) or max(self.train) >= self.count:
                raise ValueError(
                    f"train must name different folds from 0 to {self.count - 1}, at least one, got {list(self.train)}"
                )
            if list(self.train) != sorted(self.train):
                raise ValueError(f"train must increase, got {list(self.train)}")
        if self.split == "well" and self.known:
            raise ValueError("known gives experiments their folds; leave it out where split well deals single wells")
        return self

    @property
    def trained(self) -> tuple[int, ...]:
        """The folds that a run trains, ascending."""
        return tuple(range(self.count)) if self.train is None else self.train


class SimulateConfig(Frozen):
    """The simulated screen: its size and difficulty. Same files and names as the Kaggle release."""

    labelled: dict[str, Count] = Field(
        default_factory=lambda: {"HUVEC": 5, "RPE": 4, "HEPG2": 3, "U2OS": 3},
        description="labelled experiments by cell type (train.csv), held-out ones included",
    )
    unlabelled: dict[str, Count] = Field(
        default_factory=lambda: {"HUVEC": 2, "RPE": 1, "HEPG2": 1, "U2OS": 1},
        description="unlabelled experiments by cell type (test.csv)",
    )
    treatments_per_group: Annotated[int, Field(ge=1, le=277)] = Field(
        26, description="siRNAs of a plate group; a screen has four disjoint groups, a plate room for 277"
    )
    positive_controls: Annotated[int, Field(ge=0, le=30)] = Field(
        4, description="positive-control siRNAs, on every plate"
    )
    label_style: Literal["string", "integer"] = Field("string", description="numbering of the labels: sirna_N or N")
    missing_wells: Fraction = Field(0.003, description="probability that a treatment well is missing from a plate")
    missing_sites: Fraction = Field(0.001, description="probability that a site other than a well's first is missing")
    cell_diameter: Positive = Field(20.0, description="diameter of a typical cell, pixels")
    density: Positive = Field(0.75, description="expected sum of cell areas as a fraction of the image")
    effect: NonNegative = Field(1.15, description="size of a siRNA's phenotype shift; larger is easier")
    cell_type_specificity: Fraction = Field(0.4, description="share of the shift that is particular to a cell type")
    well_noise: NonNegative = Field(0.25, description="phenotype noise of a well, in units of the shift's deviation")
    batch_strength: NonNegative = Field(
        1.0, description="1 = experiment and plate shifts calibrated to RxRx1, 0 = none"
    )


class PackConfig(Frozen):
    """How plates are packed. Lossless; one chunk a site."""

    codec: Literal["lz4", "zstd"] = Field("lz4", description="Blosc compressor")
    level: Annotated[int, Field(ge=0, le=9)] = Field(5, description="compression level")
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = Field("bitshuffle", description="Blosc filter")


class StandardiseConfig(Frozen):
    """Pixels become (x - mean[domain, channel]) / std[domain, channel]."""

    domain: Domain = Field("plate", description="whose statistics: none, global, cell_type, experiment, plate")
    jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="training only: mean and std times 1 + U(-jitter, jitter), per image and channel"
    )


class BatchNormConfig(Frozen):
    """BatchNorm by domain, instead of or together with standardised pixels (AdaBN, Li et al. 2016, arXiv 1603.04779)."""

    domain: Literal["none", "cell_type", "experiment", "plate"] = Field(
        "none",
        description="training batches hold one domain, and inference takes BatchNorm statistics of the wells' domain; "
        "none: random batches and running statistics",
    )
    statistics: Literal["all", "controls"] = Field(
        "all",
        description="wells that give a domain's statistics at inference: all, or its controls (robust where classes are "
        "not balanced within a domain)",
    )


class AugmentConfig(Frozen):
    """Training views. Flips and quarter turns are always on."""

    geometric_probability: Fraction = Field(0.5, description="probability of shift, scale and aspect change")
    shift: Fraction = Field(0.1, description="largest shift, fraction of the side, zero fill")
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="scale 1 + U(-scale, scale)")
    aspect: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="aspect 1 + U(-aspect, aspect)")
    erase_probability: Fraction = Field(0.5, description="probability of random erasing")
    erase_area: tuple[Fraction, Fraction] = Field((0.02, 0.4), description="erased area, fraction of the image")
    erase_aspect: tuple[Positive, Positive] = Field((0.3, 3.3), description="aspect of the erased rectangle")
    crop: tuple[Fraction, Fraction] = Field((0.8, 0.99), description="hard view: side of the crop, resized back")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("erase_area", "erase_aspect", "crop"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be (low, high), got ({low}, {high})")
        return self


class BackboneConfig(Frozen):
    """One network. `xception` takes its widths from here; `timm` builds `model` with six input channels."""

    name: str = Field(..., pattern=r"^[a-z0-9_]+$", description="name in files and reports")
    kind: Literal["xception", "timm"] = Field("xception", description="parametric Xception, or any timm model")
    model: str | None = Field(None, description="timm model name, for kind timm")
    weights: str | None = Field(
        None,
        min_length=1,
        description="initial weights: a local file or an object-store URI, safetensors or torch; null starts at random",
    )
    stem: Count = Field(32, description="width of the 7x7 stride-2 stem")
    second_stride: Literal[1, 2] = Field(
        1, description="stride of the 3x3 convolution after the stem; 2 makes a CPU-sized network three times faster"
    )
    entry: tuple[Count, ...] = Field(
        (64, 128, 256, 728), description="widths after the stem; all but the first stride 2"
    )
    middle_blocks: Annotated[int, Field(ge=0)] = Field(8, description="residual blocks of the last entry width")
    exit: tuple[Count, Count, Count] = Field((1024, 1536, 2048), description="exit flow; the last is the embedding")

    @model_validator(mode="after")
    def _timm_has_a_model(self) -> Self:
        if (self.kind == "timm") != (self.model is not None):
            raise ValueError(f"backbone {self.name}: kind timm needs `model`, other kinds take none")
        return self


XCEPTION = BackboneConfig(name="xception")
XCEPTION_LARGE = BackboneConfig(name="xception_large", stem=64, entry=(128, 256, 384, 1024))


PUBLISHED = {backbone.name: backbone for backbone in (XCEPTION, XCEPTION_LARGE)}


def _known_backbones(data: Any) -> dict[str, Any]:
    """The backbones that can be given by name: the published ones, and those of a configuration's plain data."""
    given = data.get("backbones") if isinstance(data, dict) else None
    own = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    named = {item["name"]: item for item in own if isinstance(item.get("name"), str)}
    return {**{name: backbone.model_dump(mode="json") for name, backbone in PUBLISHED.items()}, **named}


def _name_backbones(data: Any, known: Mapping[str, Any], source: str) -> None:
    """Puts backbones that are given by name in place of their names.

    Raises:
        InputError: a name that is not known.
    """
    given = data.get("backbones") if isinstance(data, dict) else None
    for n, item in enumerate(given if isinstance(given, list) else []):
        if isinstance(item, str):
            if item not in known:
                names = ", ".join(known)
                raise InputError(f"{source}: backbones.{n}: there is no backbone {item!r}; known by name are {names}")
            data["backbones"][n] = dict(known[item])


class HeadConfig(Frozen):
    """Classifier on the embedding (Deng et al. 2019)."""

    kind: Literal["arcface", "softmax"] = Field("arcface", description="angular margin head or plain softmax")
    scale: Positive = Field(30.0, description="s of ArcFace")
    margin: Annotated[float, Field(ge=0.0, lt=1.5)] = Field(0.1, description="m of ArcFace, radians")


class PretrainConfig(Frozen):
    """Supervised training of one backbone on all cell types of a fold."""

    epochs: Count = Field(160, description="epochs; each sees every well once, at a random site")
    batch_size: Count = Field(64, description="images a step")
    learning_rates: tuple[Positive, ...] = Field((3e-4, 1e-4, 1e-5), description="Adam, step schedule")
    milestones: tuple[Count, ...] = Field((100, 140), description="epochs at which the next learning rate begins")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="optimiser steps of linear warm-up")
    weight_decay: NonNegative = Field(2e-4, description="L2, as Adam's weight_decay")
    validate_every: Count = Field(1, description="epochs between validations")
    selection: Literal["balanced", "group", "raw", "last"] = Field(
        "group",
        description="validation accuracy that selects the checkpoint: balanced, group-restricted, or raw top-1; last "
        "selects none and keeps the last epoch",
    )

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        if len(self.learning_rates) != len(self.milestones) + 1:
            raise ValueError(
                f"learning_rates must have one more entry than milestones, got {len(self.learning_rates)} "
                f"and {len(self.milestones)}"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}")
        return self


class MeanTeacherConfig(Frozen):
    """Mean-teacher training by cell type: `finetune` is its first cycles, `pseudo_label` the rest."""

    enabled: bool = Field(True, description="false ends training with `pretrain`, whose networks then predict")
    labelled_batch: Count = Field(32, description="labelled wells a step")
    unlabelled_batch: Count = Field(32, description="wells a step without labels, for consistency and pseudo-labels")
    learning_rate: Positive = Field(0.1, description="SGD at the start of a cosine cycle")
    learning_rate_low: Positive = Field(1e-3, description="SGD at the end of a cosine cycle")
    weight_decay: NonNegative = Field(2e-4, description="L2")
    cycle_epochs: Count = Field(40, description="epochs of a cycle before the cell type's ratio")
    ratio: dict[str, Positive] = Field(
        default_factory=lambda: {"U2OS": 1.0, "RPE": 0.5, "HEPG2": 0.5, "HUVEC": 0.25},
        description="cycle length factor by cell type; 1 where not named",
    )
    finetune_cycles: Positive = Field(
        1, description="cycles of finetune, also 0.5 and the like; the pseudo-labels start after them"
    )
    cycles: Count = Field(4, description="cosine cycles of finetune and pseudo_label together")
    final_epochs: Annotated[int, Field(ge=0)] = Field(5, description="epochs after the last cycle")
    final_learning_rate: Positive = Field(1e-4, description="SGD in the final epochs")
    ema_decays: tuple[Fraction, ...] = Field((0.5, 0.9, 0.99, 0.999), description="a of decay min(1 - 1/(step+1), a)")
    ema_epochs: tuple[int, ...] = Field((1, 10, 20), description="last epoch of each decay but the last")
    consistency_weight: NonNegative = Field(100.0, description="weight of the consistency loss after the ramp")
    ramp_epochs: NonNegative = Field(5.0, description="epochs of the ramp exp(-5 (1 - t)^2)")
    pseudo_labels: Literal["hard", "soft", "none"] = Field(
        "hard",
        description="labels of unlabelled wells: the most probable class, its balanced probabilities, or none (all cycles "
        "are then finetune's)",
    )
    confident_fractions: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (1.0,),
        min_length=1,
        description="share of the wells, the most confident first, that get a pseudo-label: at the first refresh, the second, "
        "..., the last value from there on",
    )
    fused_labels: str | None = Field(
        None,
        min_length=1,
        description="a further round: predictions.csv of an earlier run, a file or an object-store URI, whose names of "
        "unlabelled wells, by all of its folds, are their pseudo-labels throughout",
    )
    pseudo_label_weight: Fraction = Field(0.05, description="w: supervised loss x (1 - w) + pseudo-label loss x w")
    pseudo_label_passes: Count = Field(4, description="passes of the easy view averaged at a refresh")
    pseudo_label_blend: Fraction = Field(0.9, description="share of the new logits at a refresh; the first is all new")
    validate_every: Count = Field(1, description="epochs between validations")
    keep_classifier: bool = Field(
        False, description="whether the student keeps the pretrained classifier (the reference drops it)"
    )
    selection: Literal["balanced", "group", "raw", "last"] = Field(
        "group",
        description="validation accuracy whose best epoch predicts, and whose new best makes pseudo-labels anew: balanced, "
        "group-restricted, or raw top-1; last: validation decides nothing, as where a fold has no validation wells",
    )
    refresh_epochs: Count = Field(
        10,
        description="epochs between refreshes where validation does not decide: selection last, or no validation wells",
    )

    @model_validator(mode="after")
    def _cut(self) -> Self:
        if self.finetune_cycles > self.cycles:
            raise ValueError(f"finetune_cycles must be <= cycles, got {self.finetune_cycles:g} and {self.cycles}")
        if len(self.ema_decays) != len(self.ema_epochs) + 1:
            raise ValueError("ema_decays must have one more entry than ema_epochs")
        if list(self.ema_epochs) != sorted(set(self.ema_epochs)):
            raise ValueError(f"ema_epochs must increase, got {list(self.ema_epochs)}")
        if self.fused_labels and self.pseudo_labels == "none":
            raise ValueError("fused_labels are pseudo-labels; set pseudo_labels to hard or soft")
        if list(self.confident_fractions) != sorted(self.confident_fractions):
            raise ValueError(f"confident_fractions must not shrink, got {list(self.confident_fractions)}")
        return self


class PredictConfig(Frozen):
    """Inference: logits averaged over sites, views, folds and backbones before any softmax."""

    views: Literal[1, 2, 4, 8] = Field(8, description="dihedral views of a site")
    weights: Literal["student", "teacher"] = Field("student", description="which weights predict")
    batch_size: Count = Field(128, description="sites a forward pass")


class EmbeddingsConfig(Frozen):
    """Well embeddings for downstream analysis: the backbone's output, averaged over a well's sites and views."""

    enabled: bool = Field(True, description="write Parquet files of all wells, by cell type, fold and backbone")
    views: Literal[1, 2, 4, 8] = Field(8, description="dihedral views of a site")


class PriorConfig(Frozen):
    """What the plate design says: groups of siRNAs, one well per siRNA. `enabled: false` switches all of it off."""

    enabled: bool = Field(True, description="use plate groups, balancing and assignment")
    permutations: Literal["cyclic", "all"] = Field("cyclic", description="group-to-plate arrangements to choose among")
    min_margin: NonNegative = Field(
        5.0,
        description="smallest lead of the best arrangement over the second, in summed log-probability (nats) of the "
        "networks' own logits",
    )
    min_separation: NonNegative = Field(
        1.25,
        description="smallest lead in units of its standard error over wells, whatever the logits' scale; wrong arrangements "
        "of RxRx1's plates lead by up to 1.1 at 2.4 % raw top-1, right rotations by about 2.6 at 6 %",
    )
    on_low_margin: Literal["all_classes", "refuse"] = Field(
        "all_classes", description="below either: use all treatments of the experiment, or refuse with an error"
    )
    balancing: Literal["sinkhorn", "greedy"] = Field(
        "sinkhorn", description="how a plate's probabilities are balanced: Sinkhorn, or the reference's greedy search"
    )
    greedy_step: Positive = Field(0.01, description="greedy search: how much a step lowers a class's log weight, nats")
    greedy_iterations: Count = Field(20_000, description="greedy search: largest number of steps")
    sinkhorn_iterations: Count = Field(200, description="largest number of Sinkhorn iterations")
    sinkhorn_tolerance: Positive = Field(
        1e-3, description="stop when the column sums are this close to the target, in wells"
    )
    sinkhorn_sharpness: Positive = Field(
        4.0,
        description="how much logits are multiplied before balancing: larger is closer to one-to-one assignment",
    )


class StoreConfig(Frozen):
    """Where plates, checkpoints and logits go. Endpoint and credentials come from the AWS environment variables."""

    bucket: str = Field("cellsignal", min_length=3, description="bucket; created only in the embedded store")
    prefix: str = Field("", description="key prefix inside the bucket, without a leading slash")


class LocalConfig(Frozen):
    """This machine, for `cellsignal run`."""

    parallel_folds: Annotated[int, Field(ge=1, le=2)] = Field(
        2, description="folds trained side by side (kfp.local runs at most two)"
    )
    threads: Annotated[int, Field(ge=0)] = Field(0, description="torch threads of a step; 0 = cores / parallel_folds")


class LoaderConfig(Frozen):
    """How a training step reads sites."""

    cache_gib: NonNegative = Field(1.0, description="decoded sites that a step keeps in memory, GiB")


S = TypeVar("S", bound=Frozen)


class RunConfig(Frozen):
    """Everything about a run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="name of the run in keys and reports")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seeds the simulated screen and training")
    screen: ScreenConfig = ScreenConfig()
    folds: FoldsConfig = FoldsConfig()
    simulate: SimulateConfig = SimulateConfig()
    pack: PackConfig = PackConfig()
    standardise: StandardiseConfig = StandardiseConfig()
    batch_norm: BatchNormConfig = BatchNormConfig()
    augment: AugmentConfig = AugmentConfig()
    backbones: tuple[BackboneConfig, ...] = Field((XCEPTION, XCEPTION_LARGE), min_length=1, max_length=2)
    head: HeadConfig = HeadConfig()
    pretrain: PretrainConfig = PretrainConfig()
    mean_teacher: MeanTeacherConfig = MeanTeacherConfig()
    predict: PredictConfig = PredictConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    prior: PriorConfig = PriorConfig()
    store: StoreConfig = StoreConfig()
    loader: LoaderConfig = LoaderConfig()
    local: LocalConfig = LocalConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [backbone.name for backbone in self.backbones]
        if len(set(names)) != len(names):
            raise ValueError(f"backbones must have different names, got {names}")
        if self.folds.split == "well" and self.prior.enabled:
            raise ValueError(
                "folds.split well needs prior.enabled false: wells of one plate are on both sides of the split, so that "
                "the plate design would tell a held-out well by its neighbours' labels"
            )
        return self

    @property
    def has_pseudo_labels(self) -> bool:
        """Whether training ends with pseudo_label, which also predicts."""
        return self.mean_teacher.enabled and self.mean_teacher.pseudo_labels != "none"

    def section(self, kind: type[S]) -> S:
        """The part of the configuration that a step reads, as its own frozen model.

        Args:
            kind: a Frozen model whose fields are a subset of RunConfig's, by name and type.
        """
        return kind.model_validate(
            {
                name: getattr(self, name).model_dump()
                if isinstance(getattr(self, name), Frozen)
                else getattr(self, name)
                for name in kind.model_fields
            }
        )

    @classmethod
    def load(cls, name_or_file: str, changes: Iterable[str] = ()) -> RunConfig:
        """Reads a configuration by name (`demo`) or file, then applies `KEY=VALUE` changes.

        A backbone may be given by its name alone: one of the file's, `xception` or `xception_large`.

        Raises:
            InputError: no such file, not YAML, an unknown key, a wrong type or an impossible combination.
        """
        path = find_config(name_or_file)
        data = read_yaml(path)
        known = _known_backbones(data)
        _name_backbones(data, known, str(path))
        for change in changes:
            apply_change(data, change)
            _name_backbones(data, known, f"--set {change}")
        return parse(cls, data, source=str(path))

    def dump(self) -> str:
        """The configuration as YAML that `load` reads back to an equal one."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)
