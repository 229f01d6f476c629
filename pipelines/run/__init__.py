"""Runs on this machine: training, prediction of new plates, and the end of a run that lacks folds."""

from enum import StrEnum

RESUME = "run the same command again to resume from the finished steps"


class Runner(StrEnum):
    """How tasks of a local run are started."""

    SUBPROCESS = "subprocess"
    DOCKER = "docker"
