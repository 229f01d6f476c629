import json
import subprocess
import sys
from pathlib import Path

from components.core.config import ScreenConfig, SimulateConfig
from components.core.progress import EVENTS_VARIABLE
from components.core.screen.simulation.plate_design import SimulationSettings
from components.simulate.step import run

ROOT = Path(__file__).resolve().parents[3]
YAML = """
seed: 3
screen: {image_size: 16}
simulate: {labelled: {RPE: 1}, unlabelled: {}, treatments_per_group: 1, positive_controls: 0, cell_diameter: 8}
"""


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "components.simulate", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_the_command_writes_a_screen_and_changes_apply(tmp_path):
    (tmp_path / "run.yaml").write_text(YAML)
    done = command("--config", tmp_path / "run.yaml", "--out", tmp_path / "out", "--set", "seed=4")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "screen" / "train.csv").is_file()
    assert json.loads((tmp_path / "out" / "simulation.json").read_text())["seed"] == 4
    other = command("--config", tmp_path / "run.yaml", "--out", tmp_path / "out")
    assert other.returncode == 2
    assert len(other.stderr.splitlines()) == 1
    assert "(seed)" in other.stderr


def test_the_step_reports_its_progress_and_a_screen_that_is_there_already(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    settings = SimulationSettings(
        screen=ScreenConfig(image_size=16),
        simulate=SimulateConfig(labelled={"RPE": 1}, unlabelled={}, treatments_per_group=1, positive_controls=0),
    )
    run(settings, tmp_path / "out")
    run(settings, tmp_path / "out")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["event"] != "advance"] == ["start", "finish", "start", "note", "finish"]
    advances = [e for e in events if e["event"] == "advance"]
    assert advances[-1]["done"] == advances[-1]["total"]
    assert "already" in capsys.readouterr().out
