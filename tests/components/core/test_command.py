"""Every error of a command line is one line on standard error, with the exit code of its kind."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from components.core.command import list_items, number_items, run_app
from components.core.errors import ContactError, InputError, StepError


def fail(error: Exception) -> None:
    app = typer.Typer()

    @app.callback(invoke_without_command=True)
    def work() -> None:
        raise error

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["command"])
        run_app(app)


ENOSPC, FULL = errno.ENOSPC, "No space left on device"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("train.csv line 3:\nwell is missing"), 2, "train.csv line 3: well is missing"),
        (StepError("pretrain failed"), 3, "pretrain failed"),
        (ContactError("no answer"), 5, "no answer"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/no/screen"), 2, "/no/screen: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", b"/root/x"), 2, "/root/x: Permission denied"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "/etc/hosts/run"),
            2,
            "/etc/hosts: is a file, and a folder is",
        ),
        (OSError(ENOSPC, FULL, "/tmp/out.csv"), 3, "/tmp/out.csv: the disk is full (mounted at /"),
        (OSError(ENOSPC, FULL), 3, "a file: the disk is full; make room"),
        (OSError(errno.EIO, "Input/output error", "/tmp/a"), 3, "/tmp/a: the disk fails"),
        (ValueError("embedded null byte"), 2, "a path holds a null byte"),
        (typer.Abort(), 3, "cancelled"),
        (typer.BadParameter("no number."), 2, "Invalid value: no number; see --help"),
        (KeyError("fold"), 3, ""),
    ],
)
def test_one_line_and_the_exit_code_and_a_traceback_only_in_a_file(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
    code: int,
    line: str,
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        fail(error)
    stderr = capsys.readouterr().err
    assert ended.value.code == code
    assert stderr.startswith(f"error: {line}")
    assert stderr.count("\n") == 1
    found = re.search(r"the traceback is in (\S+)\)", stderr)
    assert (found is not None) == isinstance(error, KeyError)
    if found:
        assert "Traceback (most recent call last)" in Path(found[1]).read_text()


def test_a_pipe_whose_reader_left_is_no_error():
    code = "from components.core.command import run_command\ndef app():\n    for n in range(200000): print(n)\nrun_command(app)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_a_list_is_separated_by_commas_or_repeats_the_option():
    for values in (["a,b", "c"], ["a", "b", "c"], ["a, b ,c"]):
        assert list_items("--x", values) == ["a", "b", "c"]
    for values in ([""], ["a,"], ["a", " "]):
        with pytest.raises(InputError, match="--x: one item is empty"):
            list_items("--x", values)
    assert number_items("--x", ["4,1", "8"], 1) == [4, 1, 8]
    for bad in ("0", "-1", "a", "1.5"):
        with pytest.raises(InputError, match=f"--x {bad}: expected whole numbers from 1"):
            number_items("--x", [bad], 1)


CLEANING = """
import time
from components.core.command import cancel_on_signals, run_command
from pathlib import Path

def work(marks: Path) -> None:
    "Waits to be cancelled, then cleans up slowly."
    cancel_on_signals("run again")
    (marks / "started").touch()
    try:
        time.sleep(60)
    finally:
        time.sleep(1.0)
        (marks / "cleaned").touch()

run_command(work)
"""


def test_further_signals_do_not_disturb_the_clean_up_of_the_first(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", CLEANING, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(each)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (3, "error: cancelled; run again\n")
    assert (tmp_path / "cleaned").exists()
