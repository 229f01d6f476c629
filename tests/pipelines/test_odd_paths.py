"""Odd paths, damaged state files and a full disk: every command ends with one line and an exit code, and never waits."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.core.command import run_app
from pipelines.cli import app
from tests.pipelines.tiny_run import CONFIG, only_huvec
from tests.tiny_screen import TinyScreen

SECONDS = 120
Refuse = Callable[..., str]
MAKE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "empty file": Path.touch,
    "binary file": lambda path: path.write_bytes(b"\xff\0\xfe"),
    "below a file": lambda _: None,
    "long name": lambda _: None,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a configuration and the tables of a screen."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    only_huvec(TinyScreen(tmp_path / "screen", imaged=(), named=True))
    return tmp_path


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refuse]:
    """Runs a command, which must end with an exit code, 2 by default, and one line on stderr; returns the line."""

    def interrupt(*_: object) -> None:
        pytest.fail(f"still running after {SECONDS} s")

    def call(*arguments: str | Path, code: int = 2) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["cellsignal", *map(str, arguments)])
        signal.alarm(SECONDS)
        with pytest.raises(SystemExit) as exit_:
            run_app(app)
        signal.alarm(0)
        (line,) = capsys.readouterr().err.splitlines()
        assert (exit_.value.code, line[:7]) == (code, "error: "), line
        return line

    earlier = signal.signal(signal.SIGALRM, interrupt)
    yield call
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


RUN = ("run", "--config", "tiny.yaml", "--screen", "screen", "--store", "store")
FILES = {
    "--config": ("run", "--config", "PATH"),
    "--truth": (*RUN, "--truth", "PATH"),
    "weights": (*RUN, "--set", "backbones.0.weights=PATH"),
    "fused labels": (*RUN, "--set", "mean_teacher.fused_labels=PATH"),
    "--throughput": ("plan", "--config", "demo", "--throughput", "PATH"),
    "--images": ("compile", "--config", "demo", "--images", "PATH"),
    "finish --truth": ("finish", "--run", "key", "--quorum", "1", "--truth", "PATH"),
}
FOLDERS = {
    "--screen": (*RUN[:3], "--screen", "PATH", "--store", "store"),
    "--out": (*RUN, "--out", "PATH"),
    "--store": (*RUN[:5], "--store", "PATH"),
    "init_from": (*RUN, "--set", "init_from=PATH"),
    "--measured": ("plan", "--config", "demo", "--measured", "PATH"),
    "finish --run": ("finish", "--run", "PATH", "--quorum", "1"),
    "predict --screen": ("predict", "--screen", "PATH", "--out", "out", "--store", "."),
    "models --store": ("models", "list", "--store", "PATH"),
    "jobs --out": ("jobs", "--config", "demo", "--images", "tags", "--out", "PATH"),
}


@pytest.mark.parametrize("command", [*FILES, *FOLDERS])
def test_rejects_a_path_of_another_kind_and_leaves_nothing(folder: Path, refuse: Refuse, command: str):
    for kind, make in MAKE.items():
        # An empty YAML file changes nothing.
        right = {"--config": "empty file", "--throughput": "empty file"} if command in FILES else {command: "directory"}
        if right.get(command) == kind:
            continue
        path = folder / {"below a file": "tiny.yaml/below", "long name": "x" * 300}.get(kind, kind)
        make(path)
        before = {*folder.rglob("*")}
        refuse(*(each.replace("PATH", str(path)) for each in {**FILES, **FOLDERS}[command]))
        assert {*folder.rglob("*")} - before <= {folder / "store", folder / "runs"}, kind


@pytest.mark.parametrize("table", ["train.csv", "test.csv", "train_controls.csv"])
def test_rejects_a_table_of_another_kind(folder: Path, refuse: Refuse, table: str):
    path = folder / "screen" / table
    for kind in ("pipe", "empty file", "binary file"):
        path.unlink()
        MAKE[kind](path)
        assert table in refuse(*RUN, "--out", "out"), kind
        assert not (folder / "out").exists()


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_a_state_file_of_another_kind_neither_hangs_nor_crashes_a_run(folder: Path, refuse: Refuse, kind: str):
    for name in ("run.json", "events.jsonl", "log.txt", *(["lock", "config.yaml"] if kind == "directory" else [])):
        work = folder / name / "run"
        work.mkdir(parents=True)
        MAKE[kind](work / name)
        line = refuse(*RUN, "--out", folder / name)
        assert f"run/{name}: " in line or "run/run.json is damaged" in line, line


def test_reports_a_damaged_state_file(folder: Path, refuse: Refuse):
    (folder / "out" / "run").mkdir(parents=True)
    for content in ("", "[]", "{}", "\0"):
        (folder / "out" / "run" / "run.json").write_text(content)
        assert "run.json is damaged" in refuse(*RUN, "--out", "out")
        assert "not the folder of a run" in refuse("finish", "--run", "out", "--quorum", "1")
        assert "init_from: out: not the folder of a run" in refuse(*RUN, "--out", "new", "--set", "init_from=out")
    assert not (folder / "new").exists()


def test_rejects_a_null_byte_in_a_path(folder: Path, refuse: Refuse):
    for option in ("--config", "--screen", "--store", "--model"):
        refuse("predict", "--screen", "screen", "--out", "out", "--store", "store", option, "a\0b")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (*RUN, "--out", "out"),
        ("run", "--config", "tiny.yaml", "--store", "store", "--out", "out"),
        ("jobs", "--config", "demo", "--images", "tags", "--out", "jobs"),
    ],
    ids=["run", "run that simulates", "jobs"],
)
def test_a_full_disk_is_a_failure_that_leaves_nothing_incomplete(
    folder: Path, refuse: Refuse, arguments: tuple[str, ...]
):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # writing more fails, as on a full disk
    try:
        line = refuse(*arguments, code=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "make room" in line, line
    assert not list(folder.rglob("*.partial"))
