"""The configuration of a run: typed, frozen, self-validating, loaded from YAML. Imports neither torch nor kfp."""

from components.core.config.cluster import ClusterConfig
from components.core.config.file import (
    Count,
    Fraction,
    FrozenModel,
    NonNegative,
    Positive,
    differences,
    find_config,
    first_difference,
    parse,
)
from components.core.config.method import (
    NAMED_BACKBONES,
    XCEPTION,
    XCEPTION_LARGE,
    AugmentConfig,
    BackboneConfig,
    BatchNormConfig,
    Domain,
    EmbeddingsConfig,
    HeadConfig,
    MeanTeacherConfig,
    PredictConfig,
    PretrainConfig,
    PriorConfig,
    StandardiseConfig,
)
from components.core.config.run import (
    CHANNELS,
    NO_EFFECT_ON_RESULTS,
    PLATE_FORMATS,
    CompoundsConfig,
    ComputeConfig,
    FoldsConfig,
    LoaderConfig,
    PackConfig,
    PromotionConfig,
    RunConfig,
    ScreenConfig,
    SimulateConfig,
    SimulatedLayout,
    StoreConfig,
    result_config,
)
