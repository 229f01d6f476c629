"""How tasks of a run on this machine are started: a choice of the command line. Pure."""

from enum import StrEnum


class Runner(StrEnum):
    """How tasks of a local run are started."""

    SUBPROCESS = "subprocess"
    DOCKER = "docker"
