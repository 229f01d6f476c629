"""The whole configuration of a run, and its sections for screen, folds, simulation, storage and machines. Imports pydantic only.

One YAML file describes a run; `RunConfig.load` reads it, `--set KEY=VALUE` changes single fields. Every step receives only
the sections that it reads (`RunConfig.section`), so that a change elsewhere does not make it run again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, field_validator, model_validator

from components.core.config.cluster import ClusterConfig
from components.core.config.file import (
    Count,
    Files,
    Fraction,
    FrozenModel,
    NonNegative,
    Positive,
    apply_change,
    merged,
    parse,
    read_config,
    refusal,
)
from components.core.config.method import (
    NAMED_BACKBONES,
    XCEPTION,
    XCEPTION_LARGE,
    AugmentConfig,
    BackboneConfig,
    BatchNormConfig,
    EmbeddingsConfig,
    HeadConfig,
    MeanTeacherConfig,
    PredictConfig,
    PretrainConfig,
    PriorConfig,
    StandardiseConfig,
)
from components.core.config.unused import unused_settings
from components.core.errors import InputError
from components.core.files import cache_folder

CHANNELS = ("nuclei", "ER", "actin", "nucleoli", "mitochondria", "Golgi")
"""The six stains, in the order w1..w6 of the file names (RxRx1)."""
PLATE_FORMATS = {6: (2, 3), 12: (3, 4), 24: (4, 6), 48: (6, 8), 96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Rows and columns of a plate by its number of wells."""


RESULT_COLUMNS = frozenset(
    (
        "id_code", "experiment", "plate", "well", "cell_type", "role", "use", "fold", "backbone", "embedding",
        "confidence", "margin", "raw_confidence", "top5", "look_at", "nuclei_share", "truth",
    )
)  # fmt: skip
"""Columns of tables of results besides those of labels and of single channels."""


class ScreenConfig(FrozenModel):
    """Form, cell types, images and controls of the screen."""

    layout: Literal["auto", "kaggle", "rxrx", "loaddata", "samplesheet", "files", "omezarr"] = Field(
        "auto", description="form of the screen's tables and images; auto finds it from the folder's contents"
    )
    table_columns: dict[str, str] = Field(
        default_factory=dict,
        description="columns of the screen's table or plate map where their names are not known ones, for example "
        "{perturbation: Metadata_gene, experiment: Metadata_Source}",
    )
    plate_map: str | None = Field(
        None,
        min_length=1,
        description="table of the wells' perturbations, or JUMP's barcode_platemap: a path relative to the screen's folder, or an "
        "absolute one; null looks for it there. Layouts loaddata, files and omezarr",
    )
    path_prefixes: dict[str, str] = Field(
        default_factory=dict,
        description="where images are now whose table was written on another machine: beginnings of their paths, and the "
        "folder (absolute, or relative to the screen's) or s3:// address that takes their place, for example "
        "{/home/ubuntu/bucket: s3://cellpainting-gallery}. Layouts loaddata and samplesheet",
    )
    pattern: str | None = Field(
        None,
        min_length=1,
        description="layout files: a microscope's names, such as imagexpress, phenix or plain (docs/your-data.md lists them), or a "
        "regular expression for an image's path with the named groups well (or row and column), and any of experiment, plate, "
        "site, channel, z and t; null finds the one that fits. Layout omezarr: a regular expression for the folders of plates",
    )
    cell_types: tuple[str, ...] = Field(
        ("HUVEC", "RPE", "HEPG2", "U2OS"),
        min_length=1,
        description="cell types; a table says an experiment's in its column cell_type, or its name starts with it, or there is one",
    )
    channels: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="names of the channels in order; those that are found elsewhere in another order, or in part, are chosen by "
        "name. null: RxRx1's six stains in the layouts kaggle and rxrx, else as found",
    )
    perturbation_name: Annotated[str, Field(min_length=1, max_length=40)] = Field(
        "siRNA",
        description="what is done to the cells of a well: siRNA, compound, guide, gene; the word in reports and messages, and in "
        "lower case the column of labels in tables",
    )
    image_size: Count | tuple[Count, Count] | None = Field(
        None,
        description="side of square images, or [height, width], in pixels, which all images of a screen have; null takes that of "
        "the first image (plans and simulations then take 512)",
    )
    bin: Count = Field(1, description="networks see the mean of n x n pixels; 2 makes training four times faster")
    crop: Count | None = Field(
        None,
        description="side of the networks' square input, in pixels after binning: cut at random in training, from the centre at "
        "inference; null takes the shorter side of the images",
    )
    tile: bool = Field(
        False,
        description="whether inference averages over as many crops as cover the image, instead of taking the one at the centre",
    )
    sites: Count | None = Field(
        None, description="largest number of sites of a well that are read, the first of them; null reads all"
    )
    z: Literal["error", "max"] | Annotated[int, Field(ge=0)] = Field(
        "error",
        description="what is read of a z-stack: max, its maximum projection, or the plane of this number; error refuses a stack",
    )
    time_point: Annotated[int, Field(ge=0)] | None = Field(
        None, description="the time point that is read of a series; null refuses a series of several"
    )
    missing_images: Literal["error", "drop"] = Field(
        "error",
        description="what happens to wells without images, or with a site that lacks a channel: drop leaves them out",
    )
    negative_controls: tuple[str, ...] = Field(
        (),
        description="perturbations that are negative controls where no table says roles; none: DMSO, untreated and the like",
    )
    positive_controls: tuple[str, ...] = Field(
        (), description="perturbations that are positive controls where no table says roles"
    )
    holdout_experiments: tuple[str, ...] = Field(
        (),
        description="labelled experiments that only prediction reads; training does not see them, not even as unlabelled images",
    )
    controls: Literal["all", "training"] = Field(
        "all", description="labelled controls that are trained on: of all experiments, or of training experiments only"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for field, names in (("cell_types", self.cell_types), ("channels", self.channels or ())):
            if len(set(names)) != len(names):
                raise ValueError(f"{field} must be different, got {list(names)}")
        if not self.perturbation_name.isprintable() or self.label_column in RESULT_COLUMNS:
            raise ValueError(
                f"perturbation_name {self.perturbation_name!r} names the labels' column in tables of results; give a printable "
                "word that is no other column's, for example compound"
            )
        if self.image_size is not None:
            self.input_side_of(self.image_shape)
        return self

    @property
    def label_column(self) -> str:
        """The column of labels in tables: `sirna`. That before the prior is in raw_ and this name, the true one in true_."""
        letters = re.sub(r"[^a-z0-9]+", "_", self.perturbation_name.lower()).strip("_")
        return letters or "perturbation"

    def own_columns(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the screen's own columns in tables of results: `screen_` goes before those that results have, too."""
        taken = {*RESULT_COLUMNS, *(f"{prefix}{self.label_column}" for prefix in ("", "raw_", "true_"))}
        of_channels = ("focus_", "saturated_")
        return tuple(f"screen_{name}" if name in taken or name.startswith(of_channels) else name for name in names)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of an image, pixels; a screen's own are those of the manifest."""
        size = self.image_size or 512
        return (size, size) if isinstance(size, int) else size

    @property
    def input_side(self) -> int:
        """Side of the networks' input by what is configured; see `input_side_of`."""
        return self.input_side_of(self.image_shape)

    def input_side_of(self, shape: tuple[int, int]) -> int:
        """Side of the networks' square input from images of a height and width, pixels; ValueError if it is too large."""
        shorter = min(shape) // self.bin
        if not 1 <= (self.crop or 1) <= shorter:
            raise ValueError(
                f"crop {self.crop or 1} is larger than the images, whose shorter side is {shorter} pixels after binning"
            )
        return self.crop or shorter

    @property
    def usual_sites(self) -> int:
        """Sites of a well where they cannot be counted: as configured, else RxRx1's two."""
        return self.sites or 2

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The configured channels, or RxRx1's; a screen's own are those of core.screen.wells.Screen."""
        return self.channels or CHANNELS


class FoldsConfig(FrozenModel):
    """Cross-validation folds, grouped by experiment or plate and stratified by cell type."""

    count: Annotated[int, Field(ge=1)] = Field(
        5,
        description="number of folds; 1 holds nothing out: one fold learns all labels, without validation and out-of-fold scores",
    )
    known: dict[str, int] = Field(
        default_factory=dict,
        description="folds of experiments from an earlier run; these experiments keep them (append-only)",
    )
    validation: tuple[tuple[str, ...], ...] | None = Field(
        None,
        description="the experiments that each fold validates on, a list a fold; lists may share experiments, whose out-of-fold "
        "logits are then means over these folds. Experiments in no list are trained on by every fold and have no out-of-fold "
        "prediction. null deals the experiments, each to one fold",
    )
    train: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="folds to train, for example [0]; null trains all"
    )
    split: Literal["experiment", "plate", "well"] = Field(
        "experiment",
        description="what a fold holds out: whole experiments, whole plates, or random treatment wells; in a screen with a "
        "single experiment plates or, if they are few or differ in their labels, wells. With folds of plates or wells, the plate "
        "design is not used",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0,
        description="seed of the assignment of experiments or wells to folds; 0 takes experiments in order",
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
        if self.count == 1 and self.known:
            raise ValueError("known tells which fold holds an experiment out, but with count 1 none does; leave it out")
        if self.split != "experiment" and self.known:
            raise ValueError(f"known assigns whole experiments to folds; leave it out with split {self.split}")
        return self

    @model_validator(mode="after")
    def _listed(self) -> Self:
        if self.validation is None:
            return self
        if len(self.validation) != self.count:
            raise ValueError(
                f"validation must have a list for each of the {self.count} folds, got {len(self.validation)}"
            )
        for fold, names in enumerate(self.validation):
            if not names or len(set(names)) != len(names):
                raise ValueError(f"validation of fold {fold} must name different experiments, got {list(names)}")
        if self.known or self.split != "experiment":
            raise ValueError("validation says which experiments each fold holds out; leave known and split out")
        return self

    @property
    def trained(self) -> tuple[int, ...]:
        """The folds that a run trains, ascending."""
        return tuple(range(self.count)) if self.train is None else self.train


SimulatedLayout = Literal[
    "kaggle",
    "rxrx",
    "loaddata",
    "samplesheet",
    "imagexpress",
    "opera_phenix",
    "yokogawa",
    "cellworx",
    "omezarr_0.4",
    "omezarr_0.5",
]


class CompoundsConfig(FrozenModel):
    """A simulated screen of compounds without a plate design: every plate has all of them, replicated, at random wells."""

    count: Count = Field(24, description="number of compounds")
    replicates: Count = Field(4, description="wells of each compound on a plate, all doses together")
    doses: tuple[Positive, ...] = Field(
        (10.0,),
        min_length=1,
        description="doses that the replicates take in turn, micromolar; the highest has the full effect",
    )
    plates: Count = Field(2, description="plates of an experiment; each has a barcode of its own")
    negative_wells: Count = Field(16, description="wells of a plate with DMSO alone")
    positive_wells: Count = Field(4, description="wells of each positive control on a plate")


class SimulateConfig(FrozenModel):
    """Form, size and difficulty of the simulated screen."""

    layout: SimulatedLayout = Field(
        "kaggle",
        description="files of the screen; imagexpress to cellworx: images named as these microscopes do, and a plate map",
    )
    bits: Literal[8, 16] = Field(8, description="bits of a pixel")
    plate_format: Literal[6, 12, 24, 48, 96, 384, 1536] = Field(
        384, description="wells of a plate; from 384 on, those at the edge stay empty"
    )
    compounds: CompoundsConfig | None = Field(
        None, description="a screen of compounds without a plate design; null has RxRx1's four plate groups"
    )
    labelled: dict[str, Count] = Field(
        default_factory=lambda: {"HUVEC": 5, "RPE": 4, "HEPG2": 3, "U2OS": 3},
        description="number of labelled experiments by cell type (train.csv), held-out ones included",
    )
    unlabelled: dict[str, Count] = Field(
        default_factory=lambda: {"HUVEC": 2, "RPE": 1, "HEPG2": 1, "U2OS": 1},
        description="number of unlabelled experiments by cell type (test.csv)",
    )
    treatments_per_group: Count = Field(
        26,
        description="siRNAs of each of the four plate groups, 277 at most on 384 wells; not used with `compounds`",
    )
    positive_controls: Annotated[int, Field(ge=0, le=30)] = Field(
        4, description="number of positive controls, which are on every plate"
    )
    label_style: Literal["string", "integer"] = Field(
        "string", description="labels as sirna_N or compound_N (string) or N (integer)"
    )
    missing_wells: Fraction = Field(0.003, description="probability that a treatment well is missing from a plate")
    missing_sites: Fraction = Field(
        0.001, description="probability that a site is missing; a well's first site never is"
    )
    cell_diameter: Positive = Field(20.0, description="diameter of a typical cell, in pixels")
    density: Positive = Field(
        0.75, description="expected sum of cell areas as a fraction of the image; not used with photographs"
    )
    effect: NonNegative = Field(1.15, description="size of a siRNA's phenotype shift; larger is easier to classify")
    cell_type_specificity: Fraction = Field(
        0.4, description="share of the shift that is specific to a cell type; not used with photographs"
    )
    traits: tuple[str, ...] = Field(
        (), description="traits of cells that siRNAs change, for example [chromatin_contrast, er_texture]; none: all"
    )
    photographs: str | None = Field(
        None,
        min_length=1,
        description="folder of real 8-bit images, CELLTYPE-NN/PlateP/WELL_sS_wC.png as RxRx1's, with cells of about 80 pixels: "
        "the screen's cells are crops of them, scaled to cell_diameter and changed by image operators of each siRNA and cell "
        "type; null draws cells",
    )
    well_noise: NonNegative = Field(0.25, description="phenotype noise of a well, in standard deviations of the shift")
    batch_strength: NonNegative = Field(
        1.0, description="size of experiment and plate effects: 1 as measured on RxRx1, 0 none"
    )

    @model_validator(mode="after")
    def _fits_a_plate(self) -> Self:
        if self.photographs and self.bits != 8:
            raise ValueError("photographs have 8 bits; set bits to 8")
        if self.photographs and self.traits:
            raise ValueError("traits are of drawn cells; leave them out with photographs, or photographs with them")
        rows, columns = PLATE_FORMATS[self.plate_format]
        room = (rows - 2) * (columns - 2) if self.plate_format >= 384 else rows * columns
        if self.compounds is None:
            # RxRx1's plates keep 31 wells for controls, also if fewer are used.
            controls = 31 if self.plate_format == 384 else 1 + self.positive_controls
            field, wanted = "treatments_per_group", self.treatments_per_group
        else:
            some = self.compounds
            controls = some.negative_wells + self.positive_controls * some.positive_wells
            field, wanted = "compounds.count x compounds.replicates", some.count * some.replicates
        if wanted + controls > room:
            raise ValueError(
                f"{field} must be at most {max(room - controls, 0)}, the wells that a plate of {self.plate_format} has beside "
                f"{controls} for controls, got {wanted}"
            )
        return self


class PackConfig(FrozenModel):
    """How plates are packed: one compressed chunk per site, lossless unless 16-bit pixels are rescaled."""

    bits: Literal[8] | None = Field(
        None,
        description="8 rescales 16-bit pixels to 8 bits, half the bytes: each channel of a plate from its 0.1th to its 99.9th "
        "percentile; null keeps the original pixels",
    )
    codec: Literal["lz4", "zstd"] = Field("lz4", description="compressor of Blosc")
    level: Annotated[int, Field(ge=0, le=9)] = Field(5, description="compression level")
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = Field("bitshuffle", description="filter of Blosc")


STORE_ADDRESS = r"(s3|minio)://[^/]+.*|file:///.+"
"""The pattern of a store's address."""


class StoreConfig(FrozenModel):
    """Where plates, checkpoints and logits go. A bucket's endpoint and credentials come from the AWS environment variables."""

    bucket: str | None = Field(
        None,
        min_length=3,
        description="S3 bucket or s3://BUCKET/PREFIX, which must exist; or file:///FOLDER; null is a folder in the user's cache, "
        "and the bucket `cellsignal` on a cluster",
    )
    prefix: str = Field(
        "", description="key prefix inside the bucket, without a leading slash; of a folder, a folder in it"
    )

    @field_validator("bucket")
    @classmethod
    def _is_a_name_or_an_address(cls, bucket: str | None) -> str | None:
        if bucket and not re.fullmatch(rf"[^/:]+|{STORE_ADDRESS}", bucket):
            raise ValueError(f"{bucket!r}: write a bucket's name, s3://BUCKET/PREFIX or file:///FOLDER")
        return bucket

    @field_validator("prefix")
    @classmethod
    def _is_no_address(cls, prefix: str) -> str:
        if ":/" in prefix:
            raise ValueError(f"{prefix!r}: write the prefix alone, without the address of its bucket")
        return prefix

    @property
    def address(self) -> str:
        """Both as one address, s3://BUCKET[/PREFIX] or file:///FOLDER; without a bucket, the folder in the user's cache."""
        bucket = self.bucket or (cache_folder() / "store").as_uri()
        address = bucket if "://" in bucket else f"s3://{bucket}"
        return "/".join(part for part in (address.rstrip("/"), self.prefix.strip("/")) if part)


class LocalConfig(FrozenModel):
    """How `cellsignal run` uses this machine."""

    parallel_folds: Annotated[int, Field(ge=1, le=2)] = Field(
        2, description="folds trained in parallel; kfp.local runs at most two"
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="torch threads of a step; 0 uses cores / parallel_folds"
    )


class LoaderConfig(FrozenModel):
    """How a training step reads sites."""

    cache_gib: NonNegative = Field(1.0, description="memory for decoded sites in each process of a step, GiB")
    node_cache: str | None = Field(
        None,
        min_length=1,
        description="folder on the node's own disk that caches packed sites for all steps of the node; null caches none",
    )
    node_cache_gib: NonNegative = Field(
        100.0, description="largest size of node_cache, GiB; the least recently read sites are removed first"
    )
    batches_ahead: Count = Field(
        3,
        description="batches read ahead; a step holds two more: the one in use and the one being copied to the device",
    )
    requests: Count = Field(
        32,
        description="sites that each process fetches concurrently, with one thread each; raise it for a store with high latency. "
        "From a folder at most two per core are used",
    )


class ComputeConfig(FrozenModel):
    """How a training step uses its machine."""

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="arithmetic of the backbones; the head is always float32. auto: bfloat16 autocast on GPUs that support it",
    )
    processes: Annotated[int, Field(ge=0)] = Field(
        0,
        description="processes that share a step's batches, one per GPU; 0 uses all GPUs, or one process without GPU. "
        "BatchNorm normalises each process's part of a batch separately",
    )
    accumulate: Count = Field(
        1,
        description="parts of a process's share of a batch that are computed one after the other, to save memory; BatchNorm "
        "normalises each part separately",
    )
    compile: bool = Field(
        False,
        description="whether to compile the backbones with torch.compile: minutes at the start, then faster steps; needs a GPU",
    )
    checkpoint_seconds: NonNegative = Field(
        300.0, description="seconds between checkpoints of a step: the most that is lost when it is killed"
    )


class CardConfig(FrozenModel):
    """Facts for a published model's card that no step can know."""

    data_licence: str | None = Field(
        None,
        min_length=1,
        description="licence of the screen's images and labels, in your words; its conditions for works made from the data apply "
        "to the weights too",
    )


class PromotionConfig(FrozenModel):
    """When a challenger is promoted: not worse overall by more than a margin, and no cell type much worse.

    The defaults are for RxRx1's plates: 277 treatment wells each, four per experiment, two or more experiments held out. There an
    equal challenger passes nine times out of ten as long as at most 1.8 % of wells are classified correctly by only one of the
    models. A smaller holdout, or predictions that differ more, need wider margins, or equal challengers are refused by chance.
    """

    stage: Literal["assigned", "raw"] = Field(
        "assigned",
        description="which predictions decide: assigned, what users get, or raw, the networks alone, if the plate design should "
        "not count. Raw predictions of two equal models differ in many more wells, so they need wider margins. The other "
        "stage is shown as well",
    )
    margin: Fraction = Field(
        0.01,
        description="well top-1, as a fraction, by which the challenger may be worse overall: the lower bound of its difference "
        "must be above -margin (non-inferiority). 0 asks for proof that it is better. Each promotion may lose this much "
        "again, so a series of them can drift",
    )
    cell_type_margin: Fraction = Field(
        0.03,
        description="well top-1, as a fraction, by which the measured accuracy of any cell type may be lower. Wider than margin, "
        "as a cell type has fewer wells; its confidence bound does not count, or most equal challengers would be refused",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.95,
        description="of the one-sided lower bound; reports show the two-sided interval with this lower end, 90 % for 0.95",
    )
    resamples: Annotated[int, Field(ge=1000, multiple_of=2)] = Field(
        10_000, description="bootstrap resamples, an even number; with fewer the bound depends more on their seed"
    )
    min_plates: Annotated[int, Field(ge=2)] = Field(
        5,
        description="smallest number of held-out plates that decides. No resample is worse than the worst plate alone, so k "
        "plates can show at most 1 - 1/2^k: 5 for 0.95, 7 for 0.99. Five are more than one experiment of four, whose plates "
        "share a batch effect. Each cell type also needs two",
    )


S = TypeVar("S", bound=FrozenModel)

NO_EFFECT_ON_RESULTS = ("local", "cluster", "card", "promotion")
"""Sections that change where a run computes, what is reported and how its model is judged, but no result."""


class RunConfig(FrozenModel):
    """The whole configuration of a run."""

    # With its prefixes and suffixes still valid as the name of a Kubeflow pipeline and of a Kubernetes object.
    name: str = Field(
        "run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=40,
        description="name of the run in keys and reports",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seed of the simulated screen and of training")
    init_from: str | None = Field(
        None,
        min_length=1,
        description="a finished run (KEY, s3://BUCKET/PREFIX/runs/KEY, file:///FOLDER/runs/KEY, or its output folder) whose "
        "pretrained weights pretraining starts from, by fold and backbone; null starts from random weights. That run must not have "
        "learned labels of wells that this one validates on, holds out or treats as unlabelled: give its folds as folds.known, "
        "so that every experiment keeps its fold and new ones are added. Usually with fewer pretrain.epochs and lower "
        "pretrain.learning_rates",
    )
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
    compute: ComputeConfig = ComputeConfig()
    local: LocalConfig = LocalConfig()
    cluster: ClusterConfig = ClusterConfig()
    card: CardConfig = CardConfig()
    promotion: PromotionConfig = PromotionConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [backbone.name for backbone in self.backbones]
        if len(set(names)) != len(names):
            raise ValueError(f"backbones must have different names, got {names}")
        weighted = [backbone.name for backbone in self.backbones if backbone.weights]
        if self.init_from and weighted:
            raise ValueError(
                f"init_from sets the initial weights of every backbone, but {' and '.join(weighted)} has its own `weights`; "
                "leave one of the two out"
            )
        return self

    @property
    def has_pseudo_labels(self) -> bool:
        """Whether training ends with pseudo_label, which also predicts; else infer predicts."""
        return self.mean_teacher.enabled and self.mean_teacher.pseudo_labels != "none"

    @property
    def selects_checkpoints(self) -> bool:
        """Whether some training keeps the epoch that is best on validation wells, not the last."""
        teacher = self.mean_teacher
        return self.pretrain.selection != "last" or (teacher.enabled and teacher.selection != "last")

    def section(self, kind: type[S]) -> S:
        """The sections that a step reads, as a model whose fields are a subset of RunConfig's, by name and type."""
        return kind.model_validate(self.model_dump(include=set(kind.model_fields)))

    @classmethod
    def load(cls, name_or_file: str, changes: Iterable[str] = ()) -> RunConfig:
        """Reads a configuration by name (`demo`) or file, then applies `KEY=VALUE` changes.

        A file may extend another: `extends: demo`, a name or a path beside it. A backbone may be given by name: one of the
        file's own or of those that it extends, `xception` or `xception_large`.

        Raises:
            InputError: no such file, not YAML, an unknown key, a wrong type, an invalid combination or a setting that is not used.
        """
        files, changes = read_config(name_or_file), tuple(changes)
        data, source = merged(files), str(files[-1][0])
        _name_backbones(data, _known_backbones(*(content for _, content in files)), source)
        # Validated after the changes, which may repair or complete the file.
        config = _changed(data, changes, source, cls().model_dump(mode="json"), files)
        if unused := list(unused_settings(config)):
            raise refusal(unused, source, changes, files)
        return config

    def changed(self, changes: Sequence[str], source: str) -> RunConfig:
        """The configuration after `KEY=VALUE` changes.

        Args:
            changes: applied in order.
            source: the configuration's name in messages.

        Raises:
            InputError: an unknown key, a wrong type or an invalid combination.
        """
        return _changed(self.model_dump(mode="json"), changes, source)

    def dump(self) -> str:
        """The configuration as YAML; `load` reads it back to an equal one."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)


def result_config(config: RunConfig) -> str:
    """The sections that affect results, as JSON: equal for two runs that compute the same."""
    return config.model_dump_json(exclude=set(NO_EFFECT_ON_RESULTS))


def _changed(data: Any, changes: Sequence[str], source: str, defaults: Any = None, files: Files = ()) -> RunConfig:
    known = _known_backbones(*(content for _, content in files), data)
    for change in changes:
        apply_change(data, change, defaults)
        _name_backbones(data, known, f"--set {change}")
    return parse(RunConfig, data, source=source, changes=changes, files=files)


def _known_backbones(*contents: Any) -> dict[str, Any]:
    """The backbones that can be given by name: the two Xceptions, and those that the data define, the last of a name."""
    known = {name: backbone.model_dump(mode="json") for name, backbone in NAMED_BACKBONES.items()}
    for data in contents:
        given = data.get("backbones")
        own = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
        known |= {item["name"]: item for item in own if isinstance(item.get("name"), str)}
    return known


def _name_backbones(data: Any, known: Mapping[str, Any], source: str) -> None:
    """Replaces names of backbones by their definitions, in place.

    Raises:
        InputError: an unknown name.
    """
    given = data.get("backbones") if isinstance(data, dict) else None
    for n, item in enumerate(given if isinstance(given, list) else []):
        if isinstance(item, str):
            if item not in known:
                names = ", ".join(known)
                raise InputError(f"{source}: backbones.{n}: there is no backbone {item!r}; known names are {names}")
            data["backbones"][n] = dict(known[item])
