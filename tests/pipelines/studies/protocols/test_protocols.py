"""The command from a screen to protocols.json, on networks so small that it is mostly start-up; a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.errors import InputError
from pipelines.studies.commands import run_protocols
from tests.pipelines.tiny_run import CONFIG, Cellsignal, error_line, only_huvec
from tests.tiny_screen import TinyScreen


class Command:
    """`cellsignal protocols` on the tiny screen, in the session's store."""

    def __init__(self, folder: Path) -> None:
        self.out, self._cellsignal = folder / "out", Cellsignal(folder)
        (folder / "tiny.yaml").write_text(CONFIG)
        self.screen = only_huvec(TinyScreen(folder / "screen", imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03")))

    def __call__(self, *arguments: str):
        given = [
            "--config",
            "tiny.yaml",
            "--screen",
            self.screen.root,
            "--out",
            self.out,
            "--store",
            "store",
            *arguments,
        ]
        return self._cellsignal("protocols", *given)

    def content(self) -> dict:
        return json.loads((self.out / "protocols.json").read_text())

    def trained(self) -> int:
        """Networks trained so far."""
        done = [json.loads(file.read_text()) for file in self.out.glob("work/tasks/*/done.json")]
        return sum(task["step"] == "pretrain" for task in done)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return Command(tmp_path_factory.mktemp("protocols"))


@pytest.fixture(scope="module")
def first(command):
    """Both protocols once."""
    done = command("--repeats", "1")
    assert done.returncode == 0, done.stderr
    return done, command.content()


def test_both_protocols_are_measured_on_wells_that_they_hold_out(command, first):
    done, content = first
    assert command.trained() == 2
    assert content["held_out"] == {
        "batch": {"1": {"fold": 0, "wells": 6, "experiments": content["held_out"]["batch"]["1"]["experiments"]}},
        "random": {"1": {"fold": 0, "wells": 6, "experiments": []}},
    }
    assert len(content["held_out"]["batch"]["1"]["experiments"]) == 1
    for protocol in ("batch", "random"):
        rows = content["protocols"][protocol]
        assert list(rows) == ["overall", "HUVEC"]
        assert rows["overall"] == rows["HUVEC"]
        assert rows["overall"]["sd"] is None
        assert rows["overall"]["mean"] * 6 == pytest.approx(round(rows["overall"]["mean"] * 6)), "of six wells"
    assert done.stderr == ""
    assert "packing the screen: done" in done.stdout
    assert "random 1: predicting HUVEC: done" in done.stdout
    assert "n/a" in done.stdout
    assert "44.1 ± 5.7" in done.stdout
    assert str(command.out / "protocols.json") in done.stdout


@pytest.mark.slow  # starts everything again
def test_more_repeats_of_one_protocol_train_what_is_new_and_keep_the_other(command, first):
    _, before = first
    done = command("--repeats", "2", "--protocol", "batch")
    assert done.returncode == 0, done.stderr
    after = command.content()
    assert command.trained() == 3
    assert after["protocols"]["random"] == before["protocols"]["random"]
    repeats = after["protocols"]["batch"]["overall"]["per_repeat"]
    assert list(repeats) == ["1", "2"]
    assert repeats["1"] == before["protocols"]["batch"]["overall"]["mean"]
    assert after["protocols"]["batch"]["overall"]["sd"] is not None


def test_another_configuration_in_the_same_folder_is_refused(command, first):
    done = command("--repeats", "1", "--set", "pretrain.batch_size=4")
    assert done.returncode == 2
    assert "holds results of another config.pretrain.batch_size; use a new folder" in error_line(done)


@pytest.mark.parametrize(
    ("changes", "protocol", "repeats", "backbones", "message"),
    [
        ([], "plates", 1, 1, r"--protocol 'plates': no such protocol; use batch, random or both"),
        ([], "both", 0, 1, r"--repeats 0: at least one is needed"),
        ([], "both", 1, 2, r"--backbones 2: the configuration has 1; use 1 to 1"),
        (["folds.count=3"], "batch", 1, 1, r"folds\.count is 3, but the screen has 2 labelled experiments"),
        (
            ["folds.count=13"],
            "random",
            1,
            1,
            r"folds\.count is 13, but the screen has only 12 labelled treatment wells",
        ),
        (
            ["screen.holdout_experiments=[HUVEC-01]"],
            "both",
            1,
            1,
            r"folds\.count is 2, but the screen has 1 labelled exp",
        ),
    ],
)
def test_what_cannot_be_measured_is_found_before_anything_starts(
    tmp_path, tables, config_file, changes, protocol, repeats, backbones, message
):
    out, store = tmp_path / "out", tmp_path / "store"
    given = (str(config_file), changes, str(tables.root), protocol, repeats, backbones, out, str(store))
    with pytest.raises(InputError, match=message) as caught:
        run_protocols(*given)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not store.exists()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, tables, config_file):
    given = ["--config", config_file, "--screen", tables.root, "--out", tmp_path / "out", "--protocol", "plates"]
    assert "use batch, random or both" in Cellsignal(tmp_path).refused("protocols", *given)
