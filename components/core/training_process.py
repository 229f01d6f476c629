"""python -m components.core.training_process JOB: one of a training step's processes, started by torchrun."""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from components.core.errors import InputError, StepError
from components.core.processes import end_with_parent


def main(job: Path) -> int:
    """Runs the step of a job file; returns the exit code."""
    end_with_parent(seconds=0.2)
    parsed = json.loads(job.read_text(encoding="utf-8"))
    try:
        import_module(f"components.{parsed['step']}.step").main(**parsed["arguments"])
    except BaseException as error:
        if not isinstance(error, InputError | StepError):  # the process that started this one reports those
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # Exits at once: destroying the process group would wait for work of the other processes that will never come.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
