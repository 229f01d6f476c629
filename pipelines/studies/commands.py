"""cellsignal growth and protocols: checks, then `python -m pipelines.studies.*`. Imports neither torch nor kfp."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import StepError
from components.core.storage.opening import choose_store, open_store, store_changes
from pipelines.checks import check_input
from pipelines.images.code_version import code_version
from pipelines.studies.protocols.splits import asked_protocols, check_repeats, protocol_config

OWN_CODES = (0, 2, 3)
"""Exit codes of a study, which has printed itself what happened."""


def run_growth(config: str, changes: Sequence[str], seeds: Sequence[str], out: Path, store: str | None) -> int:
    """Runs the rungs of the growth chart; returns the exit code.

    Raises:
        InputError: a wrong configuration, or an object store that cannot be used.
    """
    settings = RunConfig.load(config, changes)
    arguments = ["--config", config, "--out", str(out), *(part for seed in seeds for part in ("--seeds", seed))]
    return _run("growth", arguments, changes, settings, store)


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
    """Measures by the organisers' protocols; returns the exit code.

    Raises:
        InputError: a wrong configuration or screen, or an object store that cannot be used.
    """
    settings = RunConfig.load(config, changes)
    check_repeats(repeats)
    for name in asked_protocols(protocol):
        for repeat in range(1, repeats + 1):
            check_input(protocol_config(settings, name, repeat, backbones), screen, None)
    arguments = ["--config", config, "--out", str(out), "--protocol", protocol]
    arguments += ["--repeats", str(repeats), "--backbones", str(backbones)]
    if screen is not None:
        arguments += ["--screen", screen]
    return _run("protocols", arguments, changes, settings, store)


def _run(study: str, arguments: Sequence[str], changes: Sequence[str], config: RunConfig, store: str | None) -> int:
    chosen = choose_store(config.store, store)
    open_store(chosen.bucket, chosen.prefix).check()
    command = ["-m", f"pipelines.studies.{study}", *arguments, "--code-version", code_version()]
    for change in [*changes, *store_changes(chosen)]:
        command += ["--set", change]
    return run_child(command)


def run_child(arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS`, which writes to this terminal.

    Args:
        arguments: the interpreter's arguments, for example -m pipelines.studies.growth ...

    Returns:
        Its exit code; 3 if it was cancelled.

    Raises:
        StepError: it was killed, perhaps for memory, or crashed.
    """
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        # numcodecs makes a semaphore in every worker; Python warns of it if a worker is terminated.
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    }
    process = subprocess.Popen([sys.executable, *arguments], env=environment)
    try:
        code = process.wait()
    except StepError:  # cancelled: the program reports that itself; in a terminal it got the same signal
        process.terminate()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if code not in OWN_CODES:
        how = f"was killed by signal {-code}, perhaps for memory" if code < 0 else f"ended with code {code}"
        raise StepError(f"{arguments[1]} {how}; run the same command again to resume from what is finished")
    return code
