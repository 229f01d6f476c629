"""simulate: settings in, a screen in any layout and its truth out. The method is core.screen.simulation."""

from __future__ import annotations

import json
from pathlib import Path

from components.core import progress
from components.core.config import parse
from components.core.errors import NO_ROOM, InputError, StepError
from components.core.screen.simulation.plate_design import SimulationSettings
from components.core.screen.simulation.writer import simulate


def run(config: SimulationSettings, out: Path) -> None:
    """Simulates a screen into a folder, as `screen/`, `truth.csv` and `simulation.json`, or finds it there.

    Raises:
        InputError: an unknown cell type, or `out` holds something else or cannot be written.
        StepError: the disk is full.
    """
    with progress.task("simulate"):
        reported = 0

        def report(done: int, total: int) -> None:
            nonlocal reported
            progress.advance("sites", done, total)
            if 10 * done // total > reported:
                reported = 10 * done // total
                progress.say(f"simulated {done} of {total} sites")

        try:
            if not simulate(config, out, progress=report):
                progress.note(f"{out} holds this simulated screen already")
        except OSError as error:
            if error.errno in NO_ROOM:
                advice = "make room, then run the same command again"
                raise StepError(f"{out}: cannot be written ({error.strerror}); {advice}") from None
            advice = "give another path, or change its permissions"
            raise InputError(f"{out}: cannot be written ({error.strerror}); {advice}") from None


def main(config: str, out: str) -> None:
    """Runs the step with SimulationSettings as JSON and a path."""
    run(parse(SimulationSettings, json.loads(config), source="simulate"), Path(out))
