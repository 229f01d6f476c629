"""The sections of a run's configuration that assign reads. Apart from step.py so that pipelines need not load SciPy."""

from components.core.config import Frozen, PriorConfig, ScreenConfig


class AssignConfig(Frozen):
    """What assign depends on."""

    screen: ScreenConfig
    prior: PriorConfig
