"""The sections of a run's configuration that assign reads. Apart from step.py so that pipelines need not load SciPy."""

from components.core.config import FrozenModel, PriorConfig, ScreenConfig


class AssignConfig(FrozenModel):
    """What assign depends on."""

    screen: ScreenConfig
    prior: PriorConfig
