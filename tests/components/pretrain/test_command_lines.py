"""Every step runs by hand: its flags are there, and bad input is one line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FLAGS = {
    "simulate": ["--config", "--out", "--set"],
    "normalize": ["--config", "--source", "--screen", "--holdout", "--holdout-labels", "--set"],
    "pretrain": ["--config", "--screen", "--fold", "--backbone", "--weights", "--set"],
    "finetune": ["--config", "--screen", "--base", "--fold", "--cell-type", "--weights", "--set"],
    "pseudo_label": [
        "--config",
        "--screen",
        "--holdout",
        "--base",
        "--fold",
        "--cell-type",
        "--weights",
        "--logits",
        "--embeddings",
        "--set",
    ],
    "infer": [
        "--config",
        "--screen",
        "--holdout",
        "--base",
        "--fold",
        "--cell-type",
        "--logits",
        "--embeddings",
        "--set",
    ],
    "ensemble": [],
    "assign": [],
    "report": [],
}


def command(step: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"COLUMNS": "200", "TERM": "dumb", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    return subprocess.run(
        [sys.executable, "-m", f"components.{step}", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("step", FLAGS)
def test_help_names_the_flags(step):
    done = command(step, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout
    for flag in FLAGS[step]:
        assert flag in done.stdout


@pytest.mark.parametrize("step", ["pretrain", "infer"])
def test_bad_input_is_one_line_and_exit_code_2(step, tmp_path):
    values = {"--config": "demo", "--set": "pretrain.epoch=3", "--fold": "0"}
    done = command(step, *(part for flag in FLAGS[step] for part in (flag, values.get(flag, str(tmp_path)))))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert "pretrain.epoch: unknown key" in done.stderr


def test_rejects_a_screen_that_is_no_manifest(tmp_path):
    (tmp_path / "screen.json").write_text("{}")
    values = {"--config": "demo", "--screen": str(tmp_path / "screen.json"), "--fold": "0"}
    flags = [flag for flag in FLAGS["pretrain"] if flag != "--set"]
    done = command("pretrain", *(part for flag in flags for part in (flag, values.get(flag, str(tmp_path)))))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: {tmp_path / 'screen.json'}: damaged, not a screen manifest (")
