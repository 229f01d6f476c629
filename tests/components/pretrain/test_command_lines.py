"""Every step has a command line, and bad input is one line and exit code 2."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = ("simulate", "normalize", "pretrain", "finetune", "pseudo_label", "infer", "ensemble", "assign", "report")


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_a_command_line(step, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [step, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"components.{step}", run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("Usage")


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    flags = ("--config", "demo", "--set", "pretrain.epoch=3", "--fold", "0", "--backbone", "x")
    command = [sys.executable, "-m", "components.pretrain", *flags, "--screen", str(tmp_path), "--weights", "w"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert "pretrain.epoch: unknown key" in done.stderr
