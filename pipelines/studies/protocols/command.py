"""cellsignal protocols: the object store around `python -m pipelines.studies.protocols`. Imports neither torch nor kfp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.core.config import RunConfig
from components.core.storage.opening import choose_store, open_store, store_changes
from pipelines.checks import check_input
from pipelines.images.code_version import code_version
from pipelines.run.child import run_child
from pipelines.studies.protocols.splits import asked_protocols, check_repeats, protocol_config


def run_protocols(
    config: str,
    changes: Sequence[str],
    screen: str | None,
    protocol: str,
    repeats: int,
    backbones: int,
    out: Path,
    store: str | None,
) -> int:
    """Measures; returns the exit code.

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
    chosen = choose_store(settings.store, store)
    open_store(chosen.bucket, chosen.prefix).check()
    for change in [*changes, *store_changes(chosen)]:
        command += ["--set", change]
    return run_child(command)
