"""The configuration sections of the method: standardisation, networks, training, prediction and prior. Imports pydantic only."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.core.config.file import Count, Fraction, FrozenModel, NonNegative, Positive

Domain = Literal["none", "global", "cell_type", "experiment", "plate", "image"]
Wells = Literal["all", "controls"]


class StandardiseConfig(FrozenModel):
    """Standardisation of pixels: (x - mean[domain, channel]) / std[domain, channel]."""

    domain: Domain = Field(
        "plate",
        description="the pixels whose mean and standard deviation are used: of the plate, experiment, cell type or whole screen "
        "(global), or of each image by itself; none divides by the largest value of the pixels' type (255 or 65,535)",
    )
    wells: Wells = Field(
        "all",
        description="wells of the domain whose pixels are used: all, or its controls only, where plates differ in their "
        "treatments (some hold controls or one compound only)",
    )
    robust: bool = Field(
        False,
        description="whether median and median absolute deviation x 1.4826 take the place of mean and standard deviation; they "
        "ignore few very bright pixels",
    )
    jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="in training, mean and std are multiplied by 1 + U(-jitter, jitter), per image and channel"
    )
    channel_noise: NonNegative = Field(
        0.0,
        description="in training, a Gaussian number is added to each channel of an image; its standard deviation, in those of "
        "standardised pixels",
    )
    jitter_per: Literal["view", "image"] = Field(
        "view",
        description="what draws jitter and channel noise: each view of an image by itself, so that student and teacher see "
        "different ones; or each image once a step, for all of its views and for the passes that compute pseudo-labels, as "
        "published",
    )

    @model_validator(mode="after")
    def _images_have_no_wells(self) -> Self:
        if self.wells == "controls" and self.domain in ("none", "image"):
            raise ValueError(f"wells controls has no meaning with domain {self.domain}; set wells to all")
        return self


class BatchNormConfig(FrozenModel):
    """BatchNorm by domain, instead of or in addition to standardised pixels (AdaBN, Li et al. 2016, arXiv 1603.04779)."""

    domain: Literal["none", "cell_type", "experiment", "plate"] = Field(
        "none",
        description="BatchNorm normalises wells of a domain by themselves in training, and inference uses BatchNorm statistics of "
        "the wells' domain; none: random batches and running statistics",
    )
    domains_per_step: Count = Field(
        4,
        description="domains of a training batch, with equally many wells each, where `domain` is not none; one plate holds a part "
        "of the classes, so that each step would pull the classifier towards them",
    )
    statistics: Wells = Field(
        "all",
        description="wells that a domain's statistics are computed from at inference: all, or its controls only (robust if "
        "classes are not balanced within a domain)",
    )


class AugmentConfig(FrozenModel):
    """Random training views. Flips and quarter turns are always on."""

    geometric_probability: Fraction = Field(0.5, description="probability of shift, scale and aspect change")
    shift: Fraction = Field(0.1, description="largest shift, as a fraction of the side; uncovered pixels are zero")
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="images are scaled by 1 + U(-scale, scale)")
    aspect: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1,
        description="the aspect ratio is multiplied by 1 + U(-aspect, aspect); 0 keeps it, as the published run in effect did",
    )
    erase_probability: Fraction = Field(0.5, description="probability of random erasing")
    erase_area: tuple[Fraction, Fraction] = Field(
        (0.02, 0.4), description="smallest and largest erased area, as a fraction of the image"
    )
    erase_aspect: tuple[Positive, Positive] = Field(
        (0.3, 3.3), description="smallest and largest aspect ratio of the erased rectangle"
    )
    erase_uniform_aspect: bool = Field(
        False,
        description="false: the logarithm of that aspect ratio is uniform, and a rectangle larger than the image is cut; true: the "
        "ratio itself is, and such a rectangle is drawn again (Zhong et al. 2017, arXiv 1708.04896), as published",
    )
    erase_before_crop: bool = Field(
        False,
        description="whether the hard view is erased before its crop, as published: the crop then enlarges the rectangle, or "
        "leaves a part of it outside",
    )
    crop: tuple[Fraction, Fraction] = Field(
        (0.8, 0.99),
        description="smallest and largest side of the hard view's crop, as a fraction of the image; the crop is resized back",
    )
    zoom: tuple[Annotated[float, Field(ge=0.1)], Fraction] = Field(
        (1.0, 1.0),
        description="smallest and largest side of a random square crop in every view, as a fraction of the image, 0.1 at least, "
        "resized back: (0.5, 1) shows cells at up to twice their size; (1, 1) crops nothing",
    )
    cutmix: NonNegative = Field(
        0.0,
        description="alpha of CutMix (Yun et al. 2019, arXiv 1905.04899) in supervised passes, of pretraining and of the mean "
        "teacher: a rectangle comes from another image of the batch, of the same BatchNorm domain, and so does its share of the "
        "target; the share is Beta(alpha, alpha) distributed, 1 for uniform; 0 mixes nothing",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("erase_area", "erase_aspect", "crop", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be (low, high), got ({low}, {high})")
        return self


class BackboneConfig(FrozenModel):
    """One network: a parametric Xception, a plain stack of convolutions, or a timm `model`."""

    name: str = Field(..., pattern=r"^[a-z0-9_]+$", description="name of the backbone in files and reports")
    kind: Literal["xception", "plain", "timm"] = Field(
        "xception",
        description="xception: a parametric Xception (`stem` to `exit`); plain: 3x3 convolutions (`stages`), for small images, "
        "little data and CPUs; timm: any timm model",
    )
    model: str | None = Field(None, description="name of the timm model, for kind timm")
    weights: str | None = Field(
        None,
        min_length=1,
        description="initial weights: a local file or an object-store URI, safetensors or torch; null starts from random weights",
    )
    stem: Count = Field(32, description="width of the 7x7 stride-2 stem")
    second_stride: Literal[1, 2] = Field(
        1,
        description="stride of the 3x3 convolution after the stem; 2 makes a small network three times faster on a CPU",
    )
    entry: tuple[Count, ...] = Field(
        (64, 128, 256, 728),
        description="widths of the entry flow after the stem; every width after the first is a block of stride 2",
    )
    middle_blocks: Annotated[int, Field(ge=0)] = Field(
        8, description="residual blocks of the middle flow, of the last entry width"
    )
    exit: tuple[Count, Count, Count] = Field(
        (1024, 1536, 2048), description="widths of the exit flow; the last is the size of the embedding"
    )
    depthwise_init: Literal["fan_out", "torch"] = Field(
        "fan_out",
        description="for kind xception: initialisation of depthwise convolutions by all outputs (He et al. 2015, arXiv "
        "1502.01852), or torch's default, as published, whose weights are 11 to 16 times larger at widths of 728 to 1,536",
    )
    stages: tuple[tuple[Count, ...], ...] = Field(
        ((32, 32), (64, 64), (128, 128), (192,)),
        description="for kind plain: widths of the 3x3 convolutions of each stage; every stage after the first halves the image, "
        "and the last width is the size of the embedding",
    )

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        if not self.stages or not all(self.stages):
            raise ValueError(f"backbone {self.name}: every stage needs at least one width, got {list(self.stages)}")
        if (self.kind == "timm") != (self.model is not None):
            raise ValueError(f"backbone {self.name}: kind timm needs `model`, other kinds take none")
        if ":" in (self.model or ""):
            # hf-hub: and local-dir: would load a network and its code from elsewhere.
            raise ValueError(
                f"backbone {self.name}: model {self.model!r} has a scheme; give a name that timm itself knows"
            )
        return self

    @property
    def smallest_input(self) -> int:
        """Smallest side of an image that pooling between the stages of kind plain leaves a pixel of; 1 for other kinds."""
        return 2 ** (len(self.stages) - 1) if self.kind == "plain" else 1


XCEPTION = BackboneConfig(name="xception")
XCEPTION_LARGE = BackboneConfig(name="xception_large", stem=64, entry=(128, 256, 384, 1024))
NAMED_BACKBONES = {backbone.name: backbone for backbone in (XCEPTION, XCEPTION_LARGE)}


class HeadConfig(FrozenModel):
    """Classifier on the embedding (Deng et al. 2019)."""

    kind: Literal["arcface", "softmax"] = Field("arcface", description="ArcFace (an angular margin) or plain softmax")
    scale: Positive = Field(30.0, description="s of ArcFace")
    margin: Annotated[float, Field(ge=0.0, lt=1.5)] = Field(0.1, description="m of ArcFace, radians")
    batch_norm: bool = Field(
        False, description="whether BatchNorm follows the backbone, before classifier and embeddings (arXiv 1903.07071)"
    )
    cell_types: bool = Field(
        False,
        description="whether a neck of BatchNorm and two linear layers that takes the cell type as input follows the backbone, so "
        "that one network serves all cell types (RxRx1's 1st place, github.com/maciej-sypetkowski/kaggle-rcic-1st); it ends in "
        "BatchNorm, whatever batch_norm",
    )
    linear_weight: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="weight of the cross-entropy of a linear classifier beside ArcFace on the same embedding, whose own is 1 - "
        "linear_weight; the linear classifier then predicts. 0 trains ArcFace alone; RxRx1's 1st place: 0.8 with margin 0.5 "
        "(github.com/maciej-sypetkowski/kaggle-rcic-1st)",
    )

    @model_validator(mode="after")
    def _joint(self) -> Self:
        if self.linear_weight and self.kind != "arcface":
            raise ValueError(f"linear_weight is of a classifier beside ArcFace; set kind to arcface, got {self.kind}")
        return self


class PretrainConfig(FrozenModel):
    """Supervised training of one backbone on all cell types of a fold."""

    epochs: Count = Field(
        160,
        description="number of epochs; each sees every well at a random site: once, or more often where "
        "batch_norm.domains_per_step fills batches",
    )
    batch_size: Count = Field(64, description="images per optimiser step, over all processes")
    optimiser: Literal["adam", "adamw"] = Field(
        "adam",
        description="Adam, or AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), whose weight decay is decoupled",
    )
    schedule: Literal["steps", "one_cycle"] = Field(
        "steps",
        description="learning rate: constant between milestones, or one cycle (Smith & Topin 2017, arXiv 1708.07120): a rise from "
        "1/25 of the only learning rate over the first 30 % of the steps, then a fall to nearly 0, both as a cosine",
    )
    learning_rates: tuple[Positive, ...] = Field(
        (3e-4, 1e-4, 1e-5), description="learning rates, one after the other; for one_cycle only its peak"
    )
    milestones: tuple[Count, ...] = Field(
        (100, 140), description="epochs (from 0) at which the next learning rate starts"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="optimiser steps over which the learning rate rises linearly from 0"
    )
    weight_decay: NonNegative = Field(2e-4, description="weight_decay of the optimiser; for Adam an L2 penalty")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="share of the target that is spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567)",
    )
    class_balance: Fraction = Field(
        0.0,
        description="an epoch draws a well in proportion to n^-class_balance, n being the training wells of its class: 0 every "
        "well once, 0.5 by the inverse root of the class size, 1 all classes equally often",
    )
    validate_every: Count = Field(1, description="epochs between validations")
    selection: Literal["balanced", "group", "raw", "last"] = Field(
        "balanced",
        description="validation accuracy that selects the checkpoint: of logits restricted to the plate group, after a softmax "
        "over the plate's wells (balanced, as published) or as they are (group), or raw top-1, which both are without a plate "
        "design; last keeps the last epoch",
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
        if self.schedule == "one_cycle" and (self.milestones or self.warmup_steps):
            raise ValueError("schedule one_cycle takes one learning rate, no milestones and warmup_steps 0")
        return self


class MeanTeacherConfig(FrozenModel):
    """Mean-teacher training by cell type: the step `finetune` runs the first cycles, `pseudo_label` the rest."""

    enabled: bool = Field(True, description="false ends training after `pretrain`, whose networks then predict")
    labelled_batch: Count = Field(32, description="labelled wells per step")
    unlabelled_batch: Count = Field(32, description="unlabelled wells per step, for consistency and pseudo-labels")
    mix: Literal["fixed", "natural"] = Field(
        "fixed",
        description="fixed: steps of labelled_batch and unlabelled_batch wells, an epoch sees every labelled well; natural: both "
        "are shuffled together into steps of labelled_batch + unlabelled_batch wells, an epoch sees every well, as published",
    )
    learning_rate: Positive = Field(0.1, description="learning rate of SGD at the start of a cosine cycle")
    learning_rate_low: Positive = Field(1e-3, description="learning rate of SGD at the end of a cosine cycle")
    weight_decay: NonNegative = Field(2e-4, description="L2 penalty, as weight_decay of SGD")
    cycle_epochs: Count = Field(40, description="epochs of a cycle, before the cell type's ratio is applied")
    ratio: dict[str, Positive] = Field(
        default_factory=lambda: {"U2OS": 1.0, "RPE": 0.5, "HEPG2": 0.5, "HUVEC": 0.25},
        description="factor of the cycle length by cell type; 1 for other cell types",
    )
    finetune_cycles: Positive = Field(
        1, description="cycles of finetune, possibly a fraction such as 0.5; pseudo-labels start after them"
    )
    cycles: Count = Field(4, description="total number of cosine cycles of finetune and pseudo_label")
    final_epochs: Annotated[int, Field(ge=0)] = Field(5, description="epochs after the last cycle")
    final_learning_rate: Positive = Field(1e-4, description="learning rate of SGD in the final epochs")
    ema_decays: tuple[Fraction, ...] = Field(
        (0.5, 0.9, 0.99, 0.999),
        description="a in the decay of the teacher, min(1 - 1/(step + 1), a), one value after the other",
    )
    ema_epochs: tuple[int, ...] = Field((1, 10, 20), description="last epoch (from 1) of each decay but the last")
    ema_first_step: Literal[0, 1] = Field(
        1,
        description="number of the first step in the teacher's decay: 1 starts from a teacher that is half the pretrained "
        "network; 0, as published, makes the teacher equal the student after its first step",
    )
    consistency_weight: NonNegative = Field(100.0, description="weight of the consistency loss after the ramp")
    ramp_epochs: NonNegative = Field(
        5.0, description="epochs over which the consistency weight rises as exp(-5 (1 - t)^2)"
    )
    pseudo_labels: Literal["hard", "soft", "none"] = Field(
        "hard",
        description="labels of unlabelled wells: the most probable class (hard), the balanced probabilities (soft), or none, "
        "in which case finetune runs all cycles",
    )
    confident_fractions: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (1.0,),
        min_length=1,
        description="share of the wells that get a pseudo-label, most confident first: at the first refresh, the second, ...; "
        "the last value applies to all later refreshes; or see confident_by",
    )
    confident_by: Literal["refresh", "epoch"] = Field(
        "refresh",
        description="epoch: confident_fractions lie evenly over the epochs of pseudo_label, and between them the share of labelled "
        "wells grows linearly, between refreshes too: [0.4, 1.0] from 40 % in the first epoch to all in the last; one fraction is "
        "constant, as by refresh",
    )
    pseudo_label_choice: Literal["argmax", "assignment"] = Field(
        "argmax",
        description="hard pseudo-labels: a well's most probable class after balancing, or its class in the one-to-one assignment "
        "of its plate, in which no class repeats; wells without a plate design keep their most probable class",
    )
    fused_labels: str | None = Field(
        None,
        min_length=1,
        description="for a further round: predictions.csv of an earlier run, a file or an object-store URI; its predictions of "
        "unlabelled wells, made by all of its folds, are the pseudo-labels throughout",
    )
    pseudo_label_weight: Fraction = Field(0.05, description="w in supervised loss x (1 - w) + pseudo-label loss x w")
    pseudo_label_passes: Count = Field(
        4, description="passes over the wells, in random easy views, that are averaged at a refresh"
    )
    pseudo_label_blend: Fraction = Field(
        0.9,
        description="weight of the new logits when a refresh blends them with the old; the first refresh has only new ones",
    )
    validate_every: Count = Field(1, description="epochs between validations")
    keep_classifier: bool = Field(
        False, description="whether the student keeps the pretrained classifier; the published method drops it"
    )
    selection: Literal["balanced", "group", "raw", "last"] = Field(
        "balanced",
        description="validation accuracy whose best epoch predicts and whose new best refreshes pseudo-labels, as "
        "pretrain.selection; last ignores validation, as if the fold had no validation wells",
    )
    refresh_epochs: Count = Field(
        10,
        description="epochs between refreshes of pseudo-labels with selection last, or without validation wells",
    )

    @model_validator(mode="after")
    def _cut(self) -> Self:
        if self.finetune_cycles > self.cycles:
            raise ValueError(f"finetune_cycles must be <= cycles, got {self.finetune_cycles:g} and {self.cycles}")
        if len(self.ema_decays) != len(self.ema_epochs) + 1:
            raise ValueError("ema_decays must have one more entry than ema_epochs")
        if list(self.ema_epochs) != sorted(set(self.ema_epochs)):
            raise ValueError(f"ema_epochs must increase, got {list(self.ema_epochs)}")
        if self.fused_labels and (self.pseudo_labels == "none" or not self.enabled):
            raise ValueError("fused_labels are pseudo-labels; set enabled to true and pseudo_labels to hard or soft")
        if self.pseudo_labels != "none" and self.finetune_cycles == self.cycles and self.final_epochs == 0:
            raise ValueError(
                f"finetune_cycles {self.finetune_cycles:g} of {self.cycles} cycles leaves no epoch for pseudo-labels; "
                "lower it, or set pseudo_labels to none"
            )
        if list(self.confident_fractions) != sorted(self.confident_fractions):
            raise ValueError(f"confident_fractions must not shrink, got {list(self.confident_fractions)}")
        if self.pseudo_label_choice == "assignment" and self.pseudo_labels == "soft":
            raise ValueError(
                "pseudo_label_choice assignment gives hard labels; set pseudo_labels to hard, or leave it out"
            )
        return self


class PredictConfig(FrozenModel):
    """Prediction: logits are averaged over sites, views, folds and backbones before any softmax."""

    views: Literal[1, 2, 4, 8] = Field(8, description="dihedral views (flips and quarter turns) of a site")
    weights: Literal["student", "teacher"] = Field("student", description="the weights that predict")
    batch_size: Count = Field(128, description="sites per forward pass")


class EmbeddingsConfig(FrozenModel):
    """Well embeddings for downstream analysis: the backbone's output, averaged over a well's sites and views."""

    enabled: bool = Field(
        True, description="whether to write embeddings of all wells as Parquet files, by cell type, fold and backbone"
    )
    views: Literal[1, 2, 4, 8] = Field(8, description="dihedral views of a site")
    sphering: Literal["none", "controls"] = Field(
        "none",
        description="controls: plates are centred on their control wells, and the covariance of the controls within plates becomes "
        "the identity (typical variation normalisation, Ando et al. 2017, bioRxiv 161422)",
    )
    shrinkage: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0,
        description="for sphering: share of the controls' covariance that is replaced by its mean variance in all directions; 0 "
        "needs more control wells than the embedding has numbers",
    )

    @model_validator(mode="after")
    def _shrinks_something(self) -> Self:
        if self.shrinkage and self.sphering == "none":
            raise ValueError("shrinkage is that of sphering; set sphering to controls, or leave shrinkage out")
        return self


class PriorConfig(FrozenModel):
    """Prior knowledge of the plate design: groups of perturbations, and one well per perturbation."""

    enabled: bool = Field(
        True,
        description="whether to use plate groups, balancing and assignment; false ignores the plate design everywhere",
    )
    permutations: Literal["cyclic", "all"] = Field(
        "cyclic", description="arrangements of groups over plates to choose from: cyclic rotations, or all permutations"
    )
    min_margin: NonNegative = Field(
        5.0,
        description="smallest margin of the best arrangement over the second, in summed log-probability (nats) of the "
        "networks' own logits",
    )
    min_separation: NonNegative = Field(
        1.25,
        description="smallest margin in units of its standard error over wells, independent of the logits' scale; on RxRx1 "
        "wrong arrangements lead by up to 1.1 at 2.4 % raw top-1, right ones by about 2.6 at 6 %",
    )
    on_low_margin: Literal["all_classes", "refuse"] = Field(
        "all_classes",
        description="if the margin is below either: use all treatments for the experiment, or stop with an error",
    )
    balancing: Literal["sinkhorn", "greedy"] = Field(
        "sinkhorn",
        description="how a plate's probabilities are balanced: Sinkhorn, or the published greedy search, which is slower "
        "and whose confidences fall up to 0.15 short of the share that is right on hard, nearly complete plates",
    )
    greedy_step: Positive = Field(
        1.0,
        description="greedy search: decrease of the most predicted class's log weight by the first steps, nats; halved ten times",
    )
    greedy_iterations: Count = Field(5000, description="greedy search: largest number of steps")
    sinkhorn_iterations: Count = Field(200, description="largest number of Sinkhorn iterations")
    sinkhorn_tolerance: Positive = Field(
        1e-3, description="Sinkhorn stops when the column sums are this close to the target, in wells"
    )
    sinkhorn_sharpness: Positive = Field(
        4.0,
        description="factor of the logits before balancing; larger is closer to one-to-one assignment",
    )
