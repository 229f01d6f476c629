"""A program in a process of its own: its code, its death and its cancelling."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.core.errors import StepError
from pipelines.studies.commands import run_child

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


@pytest.mark.parametrize("code", [0, 2, 3])
def test_the_programs_own_codes_come_through(code: int):
    assert run_child(["-c", f"raise SystemExit({code})"]) == code


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit(1)", "ended with code 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9, perhaps for memory"),
    ],
)
def test_any_other_end_is_a_failure_that_is_said(program: str, message: str):
    with pytest.raises(StepError, match=message):
        run_child(["-c", program])


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
