"""Bad usage and bad input through the command line: exit code 2, one line that names the cause, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.core.config import RunConfig
from components.core.errors import InputError
from components.image import VERSION
from pipelines.cli import app
from pipelines.options import timeout_seconds
from pipelines.run.folder import LocalRun, opened_folder
from tests.pipelines.tiny_run import ROOT, Cellsignal, error_line, processes_naming, results, truth_of, write_truth
from tests.seaweedfs import BUCKET, S3Server
from tests.tiny_screen import TinyScreen


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--config", "nowhere"]])
def test_neither_torch_nor_kfp_is_loaded_to_answer(arguments: list[str]):
    code = (
        "import sys; from pipelines import cli; sys.argv = ['cellsignal', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: print('loaded:', [m for m in ('torch', 'kfp') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert (done.stdout.splitlines()[0] == f"cellsignal {VERSION}") == (arguments == ["--version"])


BAD_RUNS = [
    (["--config", "nowhere"], ["'nowhere'", "demo"]),
    (["--config", "demo", "--set", "pretrain.epoch=3"], ["--set pretrain.epoch=3: pretrain.epoch: unknown key"]),
    (["--config", "demo", "--truth", "truth.csv"], ["--truth", "--screen"]),
    (["--config", "demo", "--screen", "nowhere"], ["--screen nowhere: no such folder"]),
    (["--config", "demo", "--screen", "s3://bucket/screen"], ["s3://bucket/screen", "AWS_ACCESS_KEY_ID is not"]),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD_RUNS)
def test_bad_usage_is_reported_by_field(cellsignal: Cellsignal, arguments: list[str], expected: list[str]):
    line = cellsignal.refused("run", *arguments, "--out", "out", "--store", "store")
    assert all(name in line for name in expected), line
    assert not (cellsignal.folder / "out").exists()
    assert not (cellsignal.folder / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--bogus"], "No such option: --bogus"),
        (["run"], "Missing option '--config'"),
        (["finish", "--run", "key", "--quorum", "two"], "Invalid value for '--quorum'"),
        (["store", "bogus"], "No such command 'bogus'"),
    ],
)
def test_wrong_usage_is_one_line(cellsignal: Cellsignal, arguments: list[str], expected: str):
    assert expected in cellsignal.refused(*arguments, environment={"CELLSIGNAL_CONFIG": ""})


@pytest.mark.parametrize(
    "command",
    [
        ("run", "--config", "demo", "--screen", "."),
        ("predict", "--screen", ".", "--out", "out"),
        ("retrain", "--config", "demo", "--screen", "."),
        ("finish", "--run", "key", "--quorum", "1"),
    ],
)
def test_rejects_a_truth_in_a_bucket_on_this_machine(cellsignal: Cellsignal, command: tuple[str, ...]):
    line = cellsignal.refused(*command, "--truth", "s3://bucket/truth.csv")
    assert "--truth s3://bucket/truth.csv: an address is read on a cluster only; download it" in line


def test_an_out_that_cannot_be_used_is_left_alone(cellsignal: Cellsignal, config_file: Path, tables: TinyScreen):
    folder = cellsignal.folder / "out"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    usual = ("run", "--config", config_file, "--screen", tables.root, "--out")
    assert "--out out: not empty, and not a run" in cellsignal.refused(*usual, "out")
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    line = cellsignal.refused(*usual, "python3-out")
    assert "--out: kfp.local cannot take a value with 'python3' in it" in line


def refuse_input(cellsignal: Cellsignal, config: Path, screen: Path, *more: str | Path, **environment: str) -> str:
    """A run that must be refused, after which there are no results and no process of it."""
    out, store = cellsignal.folder / "out", "s3://cellsignal" if environment else cellsignal.folder / "store"
    line = cellsignal.refused(
        "run", "--config", config, "--screen", screen, "--out", out, "--store", store, *more, environment=environment
    )
    assert results(out) == []
    assert processes_naming(cellsignal.folder) == []
    return line


def test_an_unknown_model_of_timm_is_found_before_plates_are_packed(
    cellsignal: Cellsignal, config_file: Path, tables: TinyScreen
):
    change = "backbones=[{name: a, kind: timm, model: nosuchnet}]"
    line = refuse_input(cellsignal, config_file, tables.root, "--set", change)
    assert "backbones.a.model: Unknown model (nosuchnet)" in line
    assert not (cellsignal.folder / "store").exists()


def test_simulate_reports_a_folder_that_cannot_be_written_in_one_line(cellsignal: Cellsignal, config_file: Path):
    out = config_file / "screen"
    done = cellsignal("simulate", "--config", config_file, "--out", out)
    assert done.returncode == 2
    assert f"{out}: cannot be written (" in error_line(done)


def test_a_bad_image(cellsignal: Cellsignal, config_file: Path, tiny_screen: TinyScreen, s3_server: S3Server):
    image = tiny_screen.image("HUVEC-02", 1, "B04", 1, 5)
    image.write_bytes(image.read_bytes()[:100])
    line = refuse_input(cellsignal, config_file, tiny_screen.root, **s3_server.environment())
    assert f"{image}: channel 5 (mitochondria) of well B04, site 1: " in line
    assert "truncated" in line
    assert not (cellsignal.folder / "out").exists(), "bad input leaves nothing behind"


def test_credentials_that_are_missing_or_refused_are_not_repeated(
    cellsignal: Cellsignal, config_file: Path, tables: TinyScreen, s3_server: S3Server
):
    known = s3_server.environment()
    secret = "not-the-secret-of-this-server"
    line = refuse_input(cellsignal, config_file, tables.root, **{**known, "AWS_SECRET_ACCESS_KEY": secret})
    assert f"s3://{BUCKET}: {known['AWS_ENDPOINT_URL']} refused to list (" in line
    assert secret not in line
    assert not (cellsignal.folder / "out").exists()
    del known["AWS_SECRET_ACCESS_KEY"]
    assert "AWS_SECRET_ACCESS_KEY is not set" in refuse_input(cellsignal, config_file, tables.root, **known)


def local_run(config: Path, screen: TinyScreen, *changes: str) -> LocalRun:
    return LocalRun(config=RunConfig.load(str(config), changes), screen=str(screen.root), truth=None, lineage={})


def test_rejects_an_out_of_other_settings_with_the_first_difference(
    cellsignal: Cellsignal, config_file: Path, tables: TinyScreen
):
    store, out = f"store.bucket={(cellsignal.folder / 'store').as_uri()}", cellsignal.folder / "out"
    with opened_folder(out, local_run(config_file, tables, "seed=7")) as folder:
        pass
    with opened_folder(out, local_run(config_file, tables, store)):
        pass  # nothing was computed with the other seed
    folder.events.write_text('{"event": "finish", "step": "normalize", "seconds": 1.0}\n')
    # These sections do not affect results.
    other_place = [store, "local.threads=7", "cluster.steps.pretrain.memory_gib=64"]
    with opened_folder(out, local_run(config_file, tables, *other_place)):
        pass
    before = folder.run.read_text()
    line = refuse_input(cellsignal, config_file, tables.root, "--set", "pretrain.epochs=2")
    assert "holds a run with another config.pretrain.epochs" in line
    truth = write_truth(cellsignal.folder / "truth.csv", truth_of(tables))
    assert "another truth" in refuse_input(cellsignal, config_file, tables.root, "--truth", truth)
    assert folder.run.read_text() == before
    assert json.loads(before)["screen"] == str(tables.root)
    with opened_folder(out, local_run(config_file, tables, store)):
        line = refuse_input(cellsignal, config_file, tables.root)
    assert "another run is working in this folder" in line


COMMANDS = [
    "simulate", "run", "predict", "retrain", "finish", "growth", "protocols", "plan", "compile", "submit", "doctor", "jobs",
    "store gc", "models show", "images build",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command: str):
    shown = CliRunner().invoke(app, [*command.split(), "--help"])
    assert shown.exit_code == 0, shown.output
    assert "Usage:" in shown.output


@pytest.mark.parametrize(("arguments", "name"), [([], "one.yaml"), (["--config", "other.yaml"], "other.yaml")])
def test_the_environment_gives_the_default_of_config(arguments: list[str], name: str):
    done = CliRunner().invoke(app, ["plan", *arguments], env={"CELLSIGNAL_CONFIG": "one.yaml"})
    assert str(done.exception).startswith(f"config '{name}': no such file")


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_rejects_a_timeout_that_is_not_above_zero(hours: float):
    with pytest.raises(InputError, match=f"--timeout {hours:g}: give hours above 0"):
        timeout_seconds(hours)


def test_finishing_from_a_folder_finds_no_run_there_and_makes_none(cellsignal: Cellsignal):
    lab = cellsignal.folder / "lab data"
    lab.mkdir()
    for folder, message in (
        (lab, f"--run none-1: no such run below {lab.as_uri()} (`cellsignal runs` lists the runs there)"),
        (lab / "unmounted", f"{lab.as_uri()}/unmounted: there is no object store"),
    ):
        line = cellsignal.refused("finish", "--run", f"{folder.as_uri()}/runs/none-1", "--quorum", "1")
        assert message in line
        assert not (cellsignal.folder / "runs").exists()
    assert list(lab.iterdir()) == []
