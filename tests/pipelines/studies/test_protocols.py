"""The organisers' protocols: from a screen to protocols.json on tiny networks; their scores and table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from components.core.errors import StepError
from components.core.storage.arrays import LogitsDirectory, WellLogits, write_logits
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary, WellRecord
from pipelines.studies.protocols import ProtocolResults, held_out_accuracy
from tests.pipelines.tiny_run import CONFIG, Cellsignal, only_huvec
from tests.tiny_screen import TinyScreen


class Command:
    """`cellsignal protocols` on the tiny screen, in the session's store."""

    def __init__(self, folder: Path) -> None:
        self.out, self.cellsignal = folder / "out", Cellsignal(folder)
        (folder / "tiny.yaml").write_text(CONFIG)
        screen = only_huvec(TinyScreen(folder / "screen", imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03"))).root
        options = ("--config", "tiny.yaml", "--screen", screen, "--out", self.out, "--store", "store")
        self.arguments = ("protocols", *options)

    def __call__(self, *arguments: str):
        return self.cellsignal(*self.arguments, *arguments)

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


@pytest.mark.slow
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
    assert "normalize: done" in done.stdout
    assert "random 1: infer fold 0 HUVEC: done" in done.stdout
    assert "n/a" in done.stdout
    assert "44.1 ± 5.7" in done.stdout
    assert str(command.out / "protocols.json") in done.stdout


@pytest.mark.slow
def test_more_repeats_of_one_protocol_train_only_new_ones_and_keep_the_other(command, first):
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


@pytest.mark.slow
def test_another_configuration_in_the_same_folder_is_refused(command, first):
    line = command.cellsignal.refused(*command.arguments, "--repeats", "1", "--set", "pretrain.batch_size=4")
    assert "holds results of another config.pretrain.batch_size; use a new folder" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "plates"], "Invalid value for '--protocol'"),
        (["--repeats", "0"], "Invalid value for '--repeats'"),
        (["--backbones", "2"], "--backbones 2: the configuration has 1; use 1 to 1"),
        (["--set", "folds.count=3", "--protocol", "batch"], "folds.count is 3, but the screen has 2 labelled experim"),
        (["--set", "folds.count=13", "--protocol", "random"], "folds.count is 13, but the screen has only 12 labelled"),
        (["--set", "screen.holdout_experiments=[HUVEC-01]"], "but the screen has 1 labelled experiment that"),
    ],
)
def test_rejects_bad_input_before_anything_starts(cellsignal, tmp_path, tables, config_file, options, message):
    usual = ["--config", config_file, "--screen", tables.root, "--out", "out", "--store", "store"]
    assert message in cellsignal.refused("protocols", *usual, *options)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store").exists()


@pytest.fixture
def results() -> ProtocolResults:
    found = ProtocolResults(("HUVEC", "U2OS", "RPE"), ("batch", "random"))
    scores = {
        2: {"overall": 0.5, "HUVEC": 0.6},
        1: {"overall": 0.3, "HUVEC": 0.2, "U2OS": 0.1},
        3: {"overall": 0.4, "HUVEC": 0.4},
    }
    for repeat, values in scores.items():
        found.add("batch", repeat, values, {"fold": 0, "wells": 10 * repeat, "experiments": [f"HUVEC-0{repeat}"]})
    found.add("random", 1, {"overall": 0.55, "HUVEC": 0.7, "U2OS": 0.2}, {"fold": 0, "wells": 9, "experiments": []})
    return found


def test_the_file_has_means_and_sample_deviations(results):
    content = results.as_json({"code_version": "v"})
    assert (content["schema"], content["code_version"]) == (1, "v")
    batch = content["protocols"]["batch"]
    assert list(batch) == ["overall", "HUVEC", "U2OS"], "no row for a cell type that was never held out"
    assert batch["overall"] == {
        "mean": pytest.approx(0.4),
        "sd": pytest.approx(0.1),  # sqrt((0.01 + 0.01 + 0) / 2)
        "per_repeat": {"1": 0.3, "2": 0.5, "3": 0.4},
    }
    assert batch["HUVEC"]["sd"] == pytest.approx(0.2)
    assert batch["U2OS"] == {"mean": 0.1, "sd": None, "per_repeat": {"1": 0.1}}
    assert content["protocols"]["random"]["overall"] == {"mean": 0.55, "sd": None, "per_repeat": {"1": 0.55}}
    assert content["held_out"]["batch"]["2"]["wells"] == 20
    assert content["organisers"]["batch"]["HEPG2"] == {"mean": 0.308, "sd": 0.04}
    assert content["organisers"]["random"]["overall"] == {"mean": 0.528, "sd": None}


def test_keeps_an_earlier_protocol_that_is_not_measured_again(results):
    earlier = results.as_json({})
    again = ProtocolResults(results.cell_types, ["random"])
    again.add("random", 1, {"overall": 0.9}, {"fold": 1, "wells": 9, "experiments": []})
    content = again.as_json({}, json.loads(json.dumps(earlier)))
    for part in ("protocols", "held_out"):
        assert content[part]["batch"] == earlier[part]["batch"]
    assert content["protocols"]["random"]["overall"]["mean"] == 0.9
    assert content["held_out"]["random"]["1"]["fold"] == 1


LABELS = {"HUVEC-01": "abcd", "HUVEC-02": "abcd", "RPE-01": "ab"}
VOCABULARY = Vocabulary(treatments=("a", "b", "c", "d"), positives=("p",), negatives=("n",))


@pytest.fixture
def manifest() -> Manifest:
    usual = {"plate": "1", "labelled": True, "prefix": "x", "histograms": ()}
    well = {"well": "B03", "role": "treatment", "sites": ()}
    plates = tuple(
        PlateRecord(
            experiment=name, cell_type=name.split("-")[0], **usual,
            wells=tuple(WellRecord(id_code=f"{name}_1_{label}", perturbation=label, **well) for label in labels),
        )
        for name, labels in LABELS.items()
    )  # fmt: skip
    folds = {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0}
    return Manifest(store="s3://x", channels=("dna",), image_shape=(8, 8), vocabulary=VOCABULARY, folds=folds,
                    plates=plates)  # fmt: skip


def logits(folder, cell_type, predicted: dict[str, str]):
    """A folder of logits whose best treatment is the predicted one; controls score higher."""
    values_WK = np.zeros((len(predicted), 6), dtype=np.float32)
    for w, label in enumerate(predicted.values()):
        values_WK[w, VOCABULARY.treatments.index(label)] = 1.0
    values_WK[:, 4:] = 9.0
    empty = WellLogits((), np.empty((0, 6), dtype=np.float32))
    wells = {"oof": WellLogits(tuple(predicted), values_WK), "unlabelled": empty, "holdout": empty}
    folder.mkdir()
    write_logits(folder, LogitsDirectory(wells, {"cell_type": cell_type, "folds": [], "history": []}))
    return folder


def test_overall_is_over_wells_and_not_over_cell_types(tmp_path, manifest):
    huvec = {f"HUVEC-01_1_{label}": predicted for label, predicted in zip("dcba", "dcca", strict=True)}
    rpe = {"RPE-01_1_b": "a", "RPE-01_1_a": "b"}
    folders = {"HUVEC": logits(tmp_path / "h", "HUVEC", huvec), "RPE": logits(tmp_path / "r", "RPE", rpe)}
    found = held_out_accuracy(manifest, 0, folders)
    assert found == {"overall": 0.5, "HUVEC": 0.75, "RPE": 0.0}


def test_refuses_logits_of_other_wells_than_the_held_out_ones(tmp_path, manifest):
    huvec = {f"HUVEC-01_1_{label}": label for label in "abc"}
    with pytest.raises(StepError, match=r"infer predicted 3 wells, but fold 0 holds out 6 others"):
        held_out_accuracy(manifest, 0, {"HUVEC": logits(tmp_path / "h", "HUVEC", huvec)})
