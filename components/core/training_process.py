"""python -m components.core.training_process JOB: one of a training step's processes, as torchrun starts them."""

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
    """Runs the step that a job file names; returns the exit code."""
    end_with_parent(seconds=0.2)
    what = json.loads(job.read_text(encoding="utf-8"))
    try:
        import_module(f"components.{what['step']}.step").main(**what["arguments"])
    except BaseException as error:
        if not isinstance(error, InputError | StepError):  # those are told by the process that started all of them
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: taking the process group down would wait for work of the others that will never come.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
