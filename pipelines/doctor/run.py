"""cellsignal doctor: makes the checks in turn and prints a line for each as it is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from components.core.config import RunConfig
from components.core.storage.folder_store import FolderStore
from components.core.storage.opening import open_store
from pipelines.doctor.finding import Finding, guarded
from pipelines.doctor.image_check import check_images
from pipelines.doctor.machine_check import check_gpu, check_room, check_shared_memory, check_versions, work_folders
from pipelines.doctor.store_check import check_store
from pipelines.images.record import RECORD

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
DONE, FAILED = 0, 2


def run_doctor(config: RunConfig, endpoint: str | None, images: Path | None, console: Console) -> int:
    """Prints what was found; returns the exit code.

    Args:
        config: names object store and namespace.
        endpoint: of Kubeflow Pipelines; None where none is checked.
        images: record of the images; None for images.json, where that is there.
        console: where to print.
    """
    levels = []
    for finding in _findings(config, endpoint, images):
        levels.append(finding.level)
        line = Text.assemble(
            (f"{finding.level:<8}", STYLES[finding.level]), (f"{finding.what:<21} ", "bold"), finding.said
        )
        console.print(line, soft_wrap=True)
    failed, warnings = levels.count("failed"), levels.count("warning")
    said = f"{failed} failed" if failed else "all that is needed is there"
    many = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    console.print(Text(said + many, style=STYLES["failed" if failed else "ok"]))
    return FAILED if failed else DONE


def _findings(config: RunConfig, endpoint: str | None, images: Path | None) -> Iterator[Finding]:
    yield from guarded("versions", check_versions)
    yield from guarded("GPU", check_gpu)
    yield from guarded("/dev/shm", check_shared_memory)
    store = open_store(config.store.bucket, config.store.prefix)
    folder = store.root if isinstance(store, FolderStore) else None
    yield from guarded("room", lambda: check_room(work_folders(folder)))
    yield from guarded("object store", lambda: check_store(store))
    record = images or (RECORD if RECORD.is_file() else None)
    if record is not None:
        yield from guarded("images", lambda: check_images(record))
    if endpoint is not None:
        yield from guarded("Kubeflow Pipelines", lambda: _check_endpoint(endpoint, config))


def _check_endpoint(endpoint: str, config: RunConfig) -> Iterator[Finding]:
    from pipelines.doctor.cluster_check import check_endpoint

    yield from check_endpoint(endpoint, config.cluster)
