"""What is asked of a cluster, whatever runs there: where, with which images, how it is followed. Asks the images' registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.core.errors import InputError
from pipelines.cluster.compile import images_of
from pipelines.images.record import RECORD, ImageRecord
from pipelines.images.registry import check_pushed

HOURS = 72.0
"""Until following ends, unless it is said otherwise."""


@dataclass(frozen=True)
class Order:
    """What is submitted, and how it is followed.

    Attributes:
        endpoint: address of Kubeflow Pipelines.
        screen: address of the screen, or of new plates.
        truth: address of labels that the report alone reads; None for none.
        images: record of the images, or `tags`.
        out: folder of the results; None for runs/KEY.
        wait: whether the run is followed.
        resubmit: how often it is submitted again after it failed.
        timeout: seconds until following ends.
        finished: whether results that the same content has in the store are taken, instead of a run that finds all done.
    """

    endpoint: str
    screen: str | None
    truth: str | None = None
    images: str = str(RECORD)
    out: Path | None = None
    wait: bool = False
    resubmit: int = 0
    timeout: float = HOURS * 3600.0
    finished: bool = False

    def checked_images(self) -> ImageRecord | None:
        """The images that are pinned, which their registry has; None for tags.

        Raises:
            InputError: no such record or image, or options that contradict each other.
        """
        if self.resubmit and not self.wait:
            raise InputError("--resubmit needs --wait: without it nobody sees that the run failed")
        check_timeout(self.timeout)
        images = images_of(self.images)
        for _, image in sorted(images.images.items()) if images else ():
            check_pushed(image.reference)
        return images


def check_timeout(seconds: float) -> None:
    """Refuses a time that nobody can wait.

    Raises:
        InputError: not above 0.
    """
    if not seconds > 0:  # which nan is not either
        raise InputError(f"--timeout {seconds / 3600:g}: give hours above 0")
