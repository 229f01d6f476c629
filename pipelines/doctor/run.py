"""cellsignal doctor: runs the checks and prints a line for each finding, or all of them as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from components.core.config import RunConfig
from components.core.storage.opening import open_store
from pipelines.doctor.checks import (
    Finding,
    check_endpoint,
    check_gpu,
    check_images,
    check_room,
    check_shared_memory,
    check_versions,
    guarded,
    work_folders,
)
from pipelines.doctor.store_check import check_store
from pipelines.images.record import RECORD

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
DONE, FAILED = 0, 2


def run_doctor(
    config: RunConfig,
    endpoint: str | None,
    images: Path | None,
    console: Console,
    *,
    as_json: bool = False,
) -> int:
    """Prints the findings; returns the exit code.

    Args:
        config: has the object store and the namespace.
        endpoint: address of Kubeflow Pipelines; None to check none.
        images: record of the images; None for images.json, if it exists.
        console: where to print.
        as_json: whether to print one JSON object instead of lines.
    """
    findings = []
    for finding in _findings(config, endpoint, images):
        findings.append(finding)
        if not as_json:
            level = (f"{finding.level:<8}", STYLES[finding.level])
            console.print(Text.assemble(level, (f"{finding.subject:<21} ", "bold"), finding.message), soft_wrap=True)
    levels = [finding.level for finding in findings]
    failed, warnings = levels.count("failed"), levels.count("warning")
    if as_json:
        content = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        console.print(json.dumps(content, indent=1), soft_wrap=True, highlight=False, markup=False)
    else:
        summary = f"{failed} failed" if failed else "everything needed is there"
        summary += f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
        console.print(Text(summary, style=STYLES["failed" if failed else "ok"]))
    return FAILED if failed else DONE


def _findings(config: RunConfig, endpoint: str | None, images: Path | None) -> Iterator[Finding]:
    yield from guarded("versions", check_versions)
    yield from guarded("GPU", check_gpu)
    yield from guarded("/dev/shm", check_shared_memory)
    store = open_store(config.store.bucket, config.store.prefix)
    yield from guarded("room", lambda: check_room(work_folders(store.root)))
    yield from guarded("object store", lambda: check_store(store))
    record = images or (RECORD if RECORD.is_file() else None)
    if record is not None:
        yield from guarded("images", lambda: check_images(record))
    if endpoint is not None:
        yield from guarded("Kubeflow Pipelines", lambda: check_endpoint(endpoint, config.cluster))
