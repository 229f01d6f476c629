"""Programs that train many related configurations on this machine: the growth chart and the organisers' protocols."""

from enum import StrEnum


class ProtocolChoice(StrEnum):
    """Values of --protocol."""

    BATCH = "batch"
    RANDOM = "random"
    BOTH = "both"
