"""The command line as a user starts it, on a screen and networks so small that a run is mostly start-up."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from tests.tiny_screen import TinyScreen

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
name: tiny
screen: {cell_types: [HUVEC], image_size: 16}
folds: {count: 2}
simulate: {labelled: {HUVEC: 2}, unlabelled: {HUVEC: 1}}
backbones: [{name: tiny, stem: 4, second_stride: 2, entry: [4, 8], middle_blocks: 0, exit: [8, 8, 8]}]
pretrain: {epochs: 1, batch_size: 8, learning_rates: [1.0e-3], milestones: []}
mean_teacher: {labelled_batch: 4, unlabelled_batch: 4, cycle_epochs: 1, cycles: 2, final_epochs: 0, ratio: {},
  pseudo_label_passes: 1}
predict: {views: 1, batch_size: 16}
local: {threads: 1}
"""


class Cellsignal:
    """`cellsignal` in processes of its own, from a folder that is not the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None, script: bool = False
    ) -> subprocess.Popen[str]:
        """Starts a command, or a script with its arguments."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, *(() if script else ("-m", "pipelines.cli")), *map(str, arguments)], cwd=self.folder,
            env={**known, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True,
        )  # fmt: skip

    def __call__(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **options)
        out, errors = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def refused(self, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> str:
        """Runs a command in this process; it must end with 2 and one line on stderr. Returns the line."""
        errors = io.StringIO()
        with pytest.MonkeyPatch.context() as patched:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patched.delenv(name)
            for name, value in {"PYTHONPATH": str(ROOT), **(environment or {})}.items():
                patched.setenv(name, value)
            patched.chdir(self.folder)
            patched.setattr(sys, "argv", ["cellsignal", *map(str, arguments)])
            output = contextlib.redirect_stdout(io.StringIO())
            with output, contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == 2, errors.getvalue()
        (line,) = errors.getvalue().splitlines()
        assert line.startswith("error: ")
        return line


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def processes_naming(path: Path) -> list[str]:
    """Command lines of the running processes that name a path: workers name --out, the object store names --store."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(path) in command:
            found.append(command)
    return found


def results(out: Path) -> list[str]:
    """Names of the results in a folder, whole or partial."""
    return sorted(path.name for path in out.glob("*") if path.is_file())


def only_huvec(screen: TinyScreen) -> TinyScreen:
    """Leaves two labelled experiments and an unlabelled one of one cell type."""
    for table in ("train.csv", "train_controls.csv"):
        screen.drop_wells(table, "RPE")
    return screen


def truth_of(screen: TinyScreen) -> dict[str, str]:
    """Each unlabelled well with the perturbation that the labelled wells at its place have."""
    place = {}
    for row in (screen.root / "train.csv").read_text().splitlines()[1:]:
        _, _, plate, well, perturbation = row.split(",")
        place[plate, well] = perturbation
    rows = (row.split(",") for row in (screen.root / "test.csv").read_text().splitlines()[1:])
    return {id_code: place[plate, well] for id_code, _, plate, well in rows}


def write_truth(file: Path, truth: Mapping[str, str]) -> Path:
    file.write_text("".join(f"{key},{value}\n" for key, value in {"id_code": "sirna", **truth}.items()))
    return file
