"""The sections of a run's configuration that normalize reads. Apart from step.py so that pipelines need not load it."""

from components.core.config import FoldsConfig, FrozenModel, PackConfig, ScreenConfig, StoreConfig


class NormalizeConfig(FrozenModel):
    """What normalize depends on; any other change of the configuration leaves its outputs alone."""

    screen: ScreenConfig = ScreenConfig()
    folds: FoldsConfig = FoldsConfig()
    pack: PackConfig = PackConfig()
    store: StoreConfig = StoreConfig()
