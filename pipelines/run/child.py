"""Runs one of the package's programs in a process of its own and ends with its exit code. Imports neither torch nor kfp."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from components.core.errors import StepError

TOLD = (0, 2, 3)
"""Exit codes of a program that has said itself what happened."""


def run_child(arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS`, which writes to this terminal.

    Args:
        arguments: of the interpreter, for example -m pipelines.studies.growth ...

    Returns:
        Its exit code, 3 where it was cancelled.

    Raises:
        StepError: it ended in a way that no program of ours ends: killed, perhaps for memory, or crashed.
    """
    whole = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        # numcodecs makes a semaphore in every worker; Python complains of it where a worker is ended.
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    }
    process = subprocess.Popen([sys.executable, *arguments], env=whole)
    try:
        code = process.wait()
    except StepError:  # cancelled, which the program says itself; in a terminal it has had the same signal
        process.terminate()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if code not in TOLD:
        how = f"was killed by signal {-code}, perhaps for memory" if code < 0 else f"ended with code {code}"
        raise StepError(f"{arguments[1]} {how}; run the same command again to go on from what is finished")
    return code
