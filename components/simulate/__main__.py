"""`python -m components.simulate --config demo --out DIR` writes a simulated screen."""

from pathlib import Path

from components.core.command import ConfigOption, OutOption, SetOption, run_command
from components.core.config import RunConfig
from components.core.screen.simulation.plate_design import SimulationSettings
from components.core.storage.artifacts import step_files
from components.simulate.step import run


def simulate(
    config: ConfigOption,
    out: OutOption,
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Writes a simulated screen in the layout `simulate.layout`, and its truth.csv."""
    settings = RunConfig.load(config, changes).section(SimulationSettings)
    with step_files() as files:
        run(settings, Path(files.output(out)))


if __name__ == "__main__":
    run_command(simulate)
