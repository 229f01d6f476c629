"""Runs the workflows' scripts in bash with stand-ins for the programs that they call: arguments, exit codes, tokens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from components.image import VERSION
from pipelines.cli import app
from pipelines.images.record import ImageRecord, write_images
from tests.github.workflows import SHELL, job

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = {
    "CELLSIGNAL_CONFIG": "my config.yaml",
    "CELLSIGNAL_SCREEN": "s3://lab/$(touch injected) plates",
    "KF_PIPELINES_ENDPOINT": "https://kubeflow.example.org",
    "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/cellsignal",
    "AWS_REGION": "eu-central-1",
}
GITHUB = {"GITHUB_REPOSITORY": "Lab/cellsignal", "GITHUB_REPOSITORY_OWNER": "Lab", "GITHUB_SHA": COMMIT}
WITHOUT_TOKEN = dict.fromkeys(("KFP_AUDIENCE", "KFP_TOKEN", "DRY_RUN", "ALLOW_NO_HOLDOUT"), "")
WITHOUT_TOKEN |= {"TIMEOUT": "4", "IMAGES": "i.json"}

RECORDS = """\
#!{python}
import json, os, pathlib, sys
with open({log!r}, "a") as log:
    print(json.dumps([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]), file=log)
"""


@dataclass(frozen=True)
class Ran:
    """What a script printed, the arguments of the stand-ins in order, the step's outputs and the job's summary."""

    code: int
    out: str
    calls: list[list[str]]
    outputs: dict[str, str]
    summary: str

    def cellsignal(self) -> list[list[str]]:
        return [call[1:] for call in self.calls if call[0] == "cellsignal"]


class Machine:
    """A folder in which a step's script runs, with stand-ins that record their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()

    def stand_in(self, name: str, does: str = "") -> None:
        """A program of that name; `does` is Python that it runs."""
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORDS.format(python=sys.executable, log=str(self.folder / "calls")) + does + "\n")
        path.chmod(0o755)

    def run(self, script: str, environment: Mapping[str, str]) -> Ran:
        """Runs a script as GitHub does."""
        files = {"GITHUB_OUTPUT": f"{self.folder}/outputs", "GITHUB_STEP_SUMMARY": f"{self.folder}/summary.md"}
        given = {**GITHUB, **files, "PATH": f"{self.bin}:{os.environ['PATH']}", "RUNNER_TEMP": str(self.folder)}
        given |= environment
        (self.folder / "script").write_text(script)
        for name in ("calls", "outputs", "summary.md"):
            (self.folder / name).write_text("")
        done = subprocess.run(
            [*SHELL, "script"], cwd=self.folder, env=given, capture_output=True, text=True, timeout=60
        )
        outputs = (line.split("=", 1) for line in (self.folder / "outputs").read_text().splitlines())
        return Ran(
            done.returncode,
            done.stdout + done.stderr,
            [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()],
            dict(outputs),  # type: ignore[arg-type]
            (self.folder / "summary.md").read_text(),
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def step(workflow: str, name: str) -> dict[str, Any]:
    """A step of images.yml or retrain.yml, whose only job has the workflow's name."""
    return job(f"{workflow}.yml", workflow).step(name)


def retraining(machine: Machine, exits: int = 0, does: str = "", **environment: str) -> Ran:
    """Runs the step `Retrain` with a stand-in that exits with `exits`."""
    machine.stand_in("../.venv/bin/cellsignal", f"{does}\nsys.exit({exits})")
    return machine.run(step("retrain", "Retrain")["run"], {**SETTINGS, **WITHOUT_TOKEN, **environment})


def check_parses(arguments: list[str]) -> None:
    """Asserts that the command line knows the command and each of its options; nothing is run."""
    command = typer.main.get_command(app)
    context = command.make_context("cellsignal", [], resilient_parsing=True)
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, arguments)
        assert command is not None, f"no command {name}"
        context = command.make_context(
            name, list(arguments), parent=context, resilient_parsing=hasattr(command, "commands")
        )


def test_images_are_built_and_pushed_by_existing_commands(machine: Machine):
    machine.stand_in("python")
    machine.stand_in("git", "print('0123456789ab')")
    machine.stand_in("cellsignal")
    built = machine.run(step("images", "Build")["run"], {})
    assert built.code == 0, built.out
    assert built.cellsignal() == [["images", "build"]]
    assert built.outputs == {"tag": "0123456789ab"}
    digest = f"sha256:{'a' * 64}"
    names = {target: f"ghcr.io/lab/cellsignal-{target}" for target in ("cpu", "gpu")}
    references = {target: f"{name}@{digest}" for target, name in names.items()}
    record = ImageRecord(schema=2, version=VERSION, commit=COMMIT[:12], references=references)
    write_images(record, machine.folder / "images.json")
    pushed = machine.run(step("images", "Push")["run"], {})
    assert pushed.code == 0, pushed.out
    assert pushed.cellsignal() == [["images", "push", "--registry", "ghcr.io/lab", "--record", "images.json"]]
    digests = {f"{target}-digest": digest for target in names}
    assert pushed.outputs == {f"{target}-name": name for target, name in names.items()} | digests
    for call in built.cellsignal() + pushed.cellsignal():
        check_parses(call)


@pytest.mark.parametrize("found", ["", "77"])
def test_a_commit_with_images_is_not_built_again(machine: Machine, found: str):
    machine.stand_in("gh", f"if sys.argv[2] == 'list': print({found!r})")
    ran = machine.run(step("images", "Images that were pushed of this commit")["run"], {})
    assert ran.code == 0, ran.out
    assert ran.outputs == ({"record": "images.json"} if found else {})
    assert COMMIT in ran.calls[0]
    assert [call[1:4] for call in ran.calls[1:]] == ([["run", "download", found]] if found else [])


@pytest.mark.parametrize("missing", SETTINGS)
def test_a_missing_setting_is_one_line(machine: Machine, missing: str):
    script = step("retrain", "Settings")["run"]
    assert machine.run(script, SETTINGS).code == 0
    ran = machine.run(script, {**SETTINGS, missing: ""})
    assert ran.code == 2
    assert ran.out.count("\n") == 1
    assert ran.out.startswith(f"::error title={missing}::{missing} is not set; ")


def test_nothing_starts_automatically_without_settings():
    condition = job("retrain.yml", "retrain").content["if"]
    by_hand, _, by_itself = condition.partition("((")
    assert re.findall(r"'(\w+)'", by_hand) == ["workflow_dispatch", "repository_dispatch"]
    assert set(re.findall(r"vars\.(\w+)", by_itself)) == SETTINGS.keys() - {"AWS_REGION"}


def test_the_newest_images_of_main_are_used(machine: Machine):
    machine.stand_in("gh", f"if sys.argv[2] == 'list': print('77 {COMMIT}')")
    ran = machine.run(step("retrain", "Images")["run"], {})
    assert ran.code == 0, ran.out
    folder = machine.folder / "images-77"
    assert ran.outputs == {"commit": COMMIT, "record": str(folder / "images.json")}
    listed, downloaded = ran.calls
    assert {"images.yml", "main", "success"} <= set(listed)
    assert downloaded[1:4] == ["run", "download", "77"]
    assert str(folder) in downloaded


@pytest.mark.parametrize(
    ("does", "message"),
    [("", "none were pushed from main"), ("print('77 ab') if sys.argv[2] == 'list' else sys.exit(1)", "run 77 of")],
)
def test_missing_images_are_one_line(machine: Machine, does: str, message: str):
    machine.stand_in("gh", does)
    ran = machine.run(step("retrain", "Images")["run"], {})
    assert ran.code == 2
    assert message in ran.out
    assert "start" in ran.out
    assert ran.outputs == {}


def test_settings_reach_the_command_unchanged(machine: Machine):
    ran = retraining(machine)
    assert ran.code == 0, ran.out
    (arguments,) = ran.cellsignal()
    assert arguments == [
        "retrain", "--config", SETTINGS["CELLSIGNAL_CONFIG"], "--screen", SETTINGS["CELLSIGNAL_SCREEN"],
        "--endpoint", SETTINGS["KF_PIPELINES_ENDPOINT"], "--images", "i.json", "--timeout", "4",
        "--summary", str(machine.folder / "summary.md"), "--out", "runs/retrain",
    ]  # fmt: skip
    assert not (machine.folder / "injected").exists()
    for inputs, options in (
        ({"DRY_RUN": "true"}, ["--dry-run"]),
        ({"ALLOW_NO_HOLDOUT": "true", "DRY_RUN": "false"}, ["--allow-no-holdout"]),
    ):
        (changed,) = retraining(machine, **inputs).cellsignal()
        assert changed == [*arguments, *options]


@pytest.mark.parametrize(
    ("exits", "ends", "title"),
    [(0, 0, None), (4, 0, "Not promoted"), (5, 0, "Not concluded"), (2, 2, None), (3, 3, None)],
)
def test_exit_codes_decide_whether_a_job_fails(machine: Machine, exits: int, ends: int, title: str | None):
    ran = retraining(machine, exits)
    assert ran.code == ends
    assert re.findall(r"::warning title=(.*?)::", ran.out) == ([title] if title else [])
    assert ("follows it to the decision" in ran.summary) == (exits == 5)


def test_following_ends_before_github_ends_the_job():
    retrain = job("retrain.yml", "retrain").content
    hours = float(step("retrain", "Retrain")["env"]["TIMEOUT"])
    duration = "role-duration-seconds"
    (session,) = (each["with"][duration] for each in retrain["steps"] if duration in each.get("with", {}))
    assert hours * 60 + 60 <= retrain["timeout-minutes"] < 6 * 60
    assert session >= retrain["timeout-minutes"] * 60


def test_githubs_token_is_in_a_file_and_in_no_argument(machine: Machine):
    secret, token = "request-secret", "header.payload.signature"
    machine.stand_in(
        "curl", f"pathlib.Path('asked').write_text(sys.stdin.read()); print(json.dumps({{'value': {token!r}}}))"
    )
    does = (
        "path = pathlib.Path(os.environ['KFP_TOKEN_FILE'])\n"
        "pathlib.Path('seen').write_text(json.dumps([path.read_text().strip(), oct(path.stat().st_mode)[-3:]]))\n"
        "assert 'KFP_TOKEN' not in os.environ"
    )
    ran = retraining(
        machine, does=does, KFP_AUDIENCE="kubeflow & co", KFP_TOKEN="stored",
        ACTIONS_ID_TOKEN_REQUEST_TOKEN=secret, ACTIONS_ID_TOKEN_REQUEST_URL="https://token.example.org/?api-version=2",
    )  # fmt: skip
    assert ran.code == 0, ran.out
    assert json.loads((machine.folder / "seen").read_text()) == [token, "600"]
    assert not (machine.folder / "kfp-token").exists()
    (curl,) = (call for call in ran.calls if call[0] == "curl")
    assert "audience=kubeflow & co" in curl
    assert secret not in json.dumps(ran.calls)
    assert secret in (machine.folder / "asked").read_text()
    assert secret not in ran.out
    assert token not in ran.out


def test_a_refused_token_fails_the_job_before_anything_starts(machine: Machine):
    machine.stand_in("curl", "sys.exit(22)")
    request = {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "s", "ACTIONS_ID_TOKEN_REQUEST_URL": "https://t.example.org/?a=b"}
    ran = retraining(machine, KFP_AUDIENCE="kubeflow", **request)
    assert ran.code != 0
    assert ran.cellsignal() == []
