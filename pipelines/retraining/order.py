"""What `cellsignal retrain` is asked, as the rest of this folder takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.core.errors import InputError
from pipelines.cluster.checks import check_address
from pipelines.cluster.submit import HOURS, SubmitRequest, check_timeout


@dataclass(frozen=True)
class Order:
    """What is retrained, where, and what may be decided.

    Attributes:
        screen: address of the screen.
        endpoint: of Kubeflow Pipelines; None for this machine.
        containers: on this machine: whether each task is a container of its step's image.
        truth: labels of unlabelled wells, for reports alone; None for none.
        images: on a cluster: record of the images, or `tags`.
        out: folder that gets one for each fingerprint.
        summary: file that gets what came of it in Markdown, at its end; None for none.
        dry_run: only says what would be done.
        allow_no_holdout: whether a challenger may be promoted that nothing was held out for.
        again: whether it is decided again where nothing has changed.
        resubmit: on a cluster: how often a failed run is submitted again.
        timeout: on a cluster: seconds until following ends, of all runs together.
    """

    screen: str
    endpoint: str | None = None
    containers: bool = False
    truth: str | None = None
    images: str = "images.json"
    out: Path = Path("runs/retrain")
    summary: Path | None = None
    dry_run: bool = False
    allow_no_holdout: bool = False
    again: bool = False
    resubmit: int = 0
    timeout: float = HOURS * 3600.0

    def check(self) -> None:
        """Refuses options that go with the other place alone, or that pods cannot read.

        Raises:
            InputError: names the option.
        """
        if self.endpoint:
            check_timeout(self.timeout)
            for option, address in (("--screen", self.screen), ("--truth", self.truth)):
                if address is not None:
                    check_address(option, address)
        elif self.resubmit:
            raise InputError("--resubmit goes with --endpoint; on this machine the same command goes on")
        if self.summary is not None and self.summary.is_dir():
            raise InputError(f"--summary {self.summary}: is a folder; give the name of a file in it")
        if self.summary is not None and not self.summary.absolute().parent.is_dir():
            raise InputError(f"--summary {self.summary}: there is no folder {self.summary.parent}; make it")

    def on_cluster(self, out: Path, seconds: float, truth: bool = True) -> SubmitRequest:
        """What a run on a cluster is asked for.

        Args:
            out: folder of its results.
            seconds: until following ends.
            truth: whether labels of unlabelled wells are given to its report.
        """
        assert self.endpoint, "it is on this machine"
        return SubmitRequest(
            endpoint=self.endpoint,
            screen=self.screen,
            truth=self.truth if truth else None,
            images=self.images,
            out=out,
            wait=True,
            resubmit=self.resubmit,
            timeout=seconds,
            reuse_results=True,
        )
