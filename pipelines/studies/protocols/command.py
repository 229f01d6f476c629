"""cellsignal protocols: the object store around `python -m pipelines.studies.protocols`. Imports neither torch nor kfp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from components.core.config import RunConfig
from pipelines.checks import check_input
from pipelines.images.code_version import code_version
from pipelines.run.child import run_child
from pipelines.run.local import storage
from pipelines.studies.protocols.splits import asked_protocols, check_repeats, protocol_config


def run_protocols(
    config: str,
    changes: Sequence[str],
    screen: str | None,
    protocol: str,
    repeats: int,
    backbones: int,
    out: Path,
    store_dir: Path | None,
    console: Console,
) -> int:
    """Measures with the user's object store, or the embedded one; returns the exit code.

    Raises:
        InputError: a wrong configuration or screen, or an object store that cannot be used.
    """
    settings = RunConfig.load(config, changes)
    check_repeats(repeats)
    for name in asked_protocols(protocol):
        for repeat in range(1, repeats + 1):
            check_input(protocol_config(settings, name, repeat, backbones), screen, None)
    command = ["-m", "pipelines.studies.protocols", "--config", config, "--out", str(out)]
    command += ["--protocol", protocol, "--repeats", str(repeats), "--backbones", str(backbones)]
    command += ["--code-version", code_version()]
    if screen is not None:
        command += ["--screen", screen]
    for change in changes:
        command += ["--set", change]
    with storage(settings.store, store_dir, console) as environment:
        return run_child(command, environment)
