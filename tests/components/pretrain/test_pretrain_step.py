"""pretrain from initial weights and from those of an earlier run: the first weights, the key, and unsuitable ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.core.config import FoldsConfig, RunConfig
from components.core.errors import InputError
from components.core.learning.network import Classifier
from components.core.learning.step_settings import PretrainSettings
from components.core.learning.weight_files import save_weights
from components.core.progress import EVENTS_VARIABLE
from components.core.storage.digests import digest_file
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import TaskRecord
from components.pretrain import step
from tests.components.core.learning.tiny_networks import RUN, SLIM, SMALL, changed
from tests.components.pretrain.training_run import TrainingRun, epochs_trained, weights
from tests.tiny_screen import LABELLED, UNLABELLED, MemoryStore, TinyScreen

IMAGED = (*LABELLED, *UNLABELLED, "HUVEC-04")


def run_of(out: Path, store: ObjectStore, **changes: Any) -> TrainingRun:
    """A run of one backbone; its folder's name is its key."""
    # The tiny plates are no groups that a new perturbation could join.
    config = changed(RUN.model_copy(update={"backbones": (SLIM,), **changes}), prior={"enabled": False})
    return TrainingRun(out, store.uri(""), config)


def trained(out: Path, store: ObjectStore, source: Path, **changes: Any) -> TrainingRun:
    run = run_of(out, store, **changes)
    run.normalize(source, out.name)
    run.pretrain("slim")
    return run


def recorded(store: ObjectStore, key: str) -> TaskRecord:
    return TaskRecord.model_validate_json(store.get(f"runs/{key}/tasks/pretrain/0/slim.json"))


@pytest.fixture
def old(folder_store: ObjectStore, tmp_path: Path, tiny: TinyScreen) -> TrainingRun:
    """HUVEC-01 and RPE-01 are of fold 0, which is trained; HUVEC-02 of fold 1."""
    run = trained(tmp_path / "old-1", folder_store, tiny.root)
    assert Manifest.read(run.screen).folds == {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0}
    return run


@pytest.fixture
def larger(tmp_path: Path) -> Path:
    """The same screen with an experiment more, and another perturbation in two of its wells."""
    screen = TinyScreen(tmp_path / "larger", imaged=IMAGED, more=["HUVEC-04"])
    screen.edit("train.csv", "HUVEC-04_1_B04,HUVEC-04,1,B04,sirna_30", "HUVEC-04_1_B04,HUVEC-04,1,B04,sirna_99")
    screen.edit("train.csv", "HUVEC-04_2_B04,HUVEC-04,2,B04,sirna_11", "HUVEC-04_2_B04,HUVEC-04,2,B04,sirna_99")
    return screen.root


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks keep the weights that they start with."""
    monkeypatch.setattr(step.SupervisedTraining, "run", lambda *_: None)


KNOWN = FoldsConfig(count=2, known={"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0}, train=(0,))


def test_a_new_run_starts_with_the_weights_of_its_fold(
    old: TrainingRun, folder_store: ObjectStore, tmp_path: Path, larger: Path, untrained: None, capsys
):
    new = trained(tmp_path / "new-1", folder_store, larger, init_from="old-1", folds=KNOWN, seed=9)
    files = [run.base("slim") / "weights.safetensors" for run in (old, new)]
    then, now = (load_file(str(file)) for file in files)
    classes_then, classes_now = (Manifest.read(run.screen).vocabulary.classes for run in (old, new))
    assert all((then[name] == now[name]).all() for name in then if name != "head.weight")
    rows = [classes_now.index(label) for label in classes_then]
    assert (now["head.weight"][rows] == then["head.weight"]).all()
    assert set(classes_now) - set(classes_then) == {"sirna_99"}
    output = capsys.readouterr().out
    assert "from fold 0 of run old-1; 8 classes keep their rows of the head, 1 start at random (sirna_99)" in output
    assert json.loads((new.base("slim") / "meta.json").read_text())["init_from"] == {
        "run": "old-1", "fold": 0, "backbone": "slim", "sha256": digest_file(files[0]),
        "known_classes": 8, "new_classes": ["sirna_99"], "left_out_classes": [],
    }  # fmt: skip


FIRST = FoldsConfig(count=2, train=(0,))


def test_the_content_of_the_weights_is_part_of_the_key_and_their_address_is_not(
    old: TrainingRun, folder_store: ObjectStore, tmp_path: Path, tiny: TinyScreen, monkeypatch: pytest.MonkeyPatch
):
    events, results = tmp_path / "events.jsonl", []
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    # The last starts from weights of the first, which are of another content than those of old-1.
    for key, init_from in (("new-1", "old-1"), ("new-2", folder_store.uri("runs/old-1")), ("new-3", "new-1")):
        run = trained(tmp_path / key, folder_store, tiny.root, init_from=init_from, folds=FIRST, seed=9)
        results.append((epochs_trained(events), weights(run.base("slim"))))
    assert [epochs for epochs, _ in results] == [2, 2, 4]
    assert results[0][1] == results[1][1] != results[2][1]


def test_a_chain_of_runs_records_all_learned_labels(
    old: TrainingRun, folder_store: ObjectStore, tmp_path: Path, larger: Path, untrained: None
):
    """HUVEC-02 taught the first run, is gone from the second, and may not validate in the third."""
    assert recorded(folder_store, "old-1").learned.experiments == ("HUVEC-02",)
    tables = {name: (larger / name).read_text() for name in ("train.csv", "train_controls.csv")}
    for name, text in tables.items():
        (larger / name).write_text("".join(r for r in text.splitlines(keepends=True) if not r.startswith("HUVEC-02")))
    folds = FoldsConfig(count=2, known={"HUVEC-01": 0, "RPE-01": 0, "HUVEC-04": 1}, train=(0,))
    trained(tmp_path / "new-1", folder_store, larger, init_from="old-1", folds=folds)
    assert recorded(folder_store, "new-1").learned.experiments == ("HUVEC-02", "HUVEC-04")
    for name, text in tables.items():
        (larger / name).write_text(text)
    folds = FoldsConfig(count=2, known={"HUVEC-01": 0, "RPE-01": 1, "HUVEC-04": 1, "HUVEC-02": 0}, train=(0,))
    with pytest.raises(InputError, match=r"HUVEC-02 validates in fold 0 now, .* or a run that it started from has"):
        trained(tmp_path / "new-2", folder_store, larger, init_from="new-1", folds=folds)


def test_normalize_and_pretrain_both_reject_an_unsuitable_earlier_run(
    old: TrainingRun, folder_store: ObjectStore, tmp_path: Path, larger: Path
):
    learned = FoldsConfig(count=2, known={"HUVEC-02": 0}, train=(0,))
    messages = r"HUVEC-02 validates in fold 0 now, .*folds\.known", r"no pretrained weights of fold 1 and slim \(it has"
    before = set(folder_store.list())
    for folds, message in zip((learned, FoldsConfig(count=2)), messages, strict=True):
        with pytest.raises(InputError, match=message):
            run_of(tmp_path / "new-1", folder_store, init_from="old-1", folds=folds).normalize(larger, "new-1")
        assert set(folder_store.list()) == before
    run_of(tmp_path / "new-1", folder_store, folds=learned).normalize(larger, "new-1")
    new = run_of(tmp_path / "new-1", folder_store, init_from="old-1", folds=learned)
    for new.fold, message in enumerate(messages):
        with pytest.raises(InputError, match=message):
            new.pretrain("slim")
    assert not new.base("slim").exists()


def test_rejects_missing_weights_and_a_changed_screen(
    old: TrainingRun, folder_store: ObjectStore, tmp_path: Path, tiny: TinyScreen
):
    new = run_of(tmp_path / "new-1", folder_store, init_from="old-1", folds=FIRST)
    new.normalize(tiny.root, "new-1")
    folder_store.delete_prefix(recorded(folder_store, "old-1").prefix)
    with pytest.raises(InputError, match="slim of fold 0 of run old-1 is gone or damaged; repeat that run, or leave"):
        new.pretrain("slim")
    table = tiny.root / "test.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    old.normalize(tiny.root, "old-1")
    with pytest.raises(InputError, match="slim of fold 0 of run old-1 was trained with an earlier screen"):
        new.pretrain("slim")
    folder_store.delete("runs/old-1/screen.json")
    with pytest.raises(InputError, match=r"runs/old-1/screen.json is missing, so the labels that run old-1 has learn"):
        new.pretrain("slim")


def starting_from(config: RunConfig, path: str) -> RunConfig:
    """The configuration with weights of `slim` from a file."""
    return config.model_copy(update={"backbones": (SMALL, SLIM.model_copy(update={"weights": path}))})


def test_starts_from_initial_weights_and_records_them(
    screen: tuple[MemoryStore, Manifest], tmp_path: Path, untrained: None, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "initial.safetensors"
    torch.manual_seed(77)
    start = Classifier(SLIM, RUN.head, 3, channels=3).backbone.state_dict()
    save_file(start, str(path))
    settings = starting_from(RUN, str(path)).section(PretrainSettings)
    step.run(settings, *screen, 0, "slim", tmp_path / "started", path)
    started = load_file(str(tmp_path / "started" / "weights.safetensors"))
    for name, tensor in start.items():
        expected = tensor.repeat(1, 2, 1, 1) / 2 if name == "stem.0.weight" else tensor
        assert torch.equal(started[f"backbone.{name}"], expected)
    output = capsys.readouterr().out
    assert f"{len(start)} of {len(start)} tensors start from {path}; adapted to its channels: stem.0.weight\n" in output
    assert "warning" not in output
    record = json.loads((tmp_path / "started" / "meta.json").read_text())["initial_weights"]
    assert record["sha256"] == digest_file(path)
    assert (set(record["taken"]), record["new"], record["unused"]) == (set(start), [], [])
    # Weights of half a network may be intended, but the user is warned.
    some = {name: tensor for name, tensor in start.items() if not name.startswith("exit.")}
    save_file(some, str(path))
    step.run(settings, *screen, 0, "slim", tmp_path / "half", path)
    assert f"warning: slim: {len(some)} of " in capsys.readouterr().out


def test_initial_weights_of_other_content_repeat_the_work_wherever_they_are(
    pretrained: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events, path, results = tmp_path / "events.jsonl", tmp_path / "initial.safetensors", []
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    store = ObjectStore(pretrained.store)
    stored = store.uri("models/w.safetensors")
    for seed, address, epochs in ((1, str(path), 2), (1, stored, 2), (2, str(path), 4)):
        torch.manual_seed(seed)
        save_weights(Classifier(SLIM, RUN.head, 3).backbone, path)
        store.upload_file(path, "models/w.safetensors")
        pretrained.config = starting_from(pretrained.config, address)
        pretrained.pretrain("slim")
        assert epochs_trained(events) == epochs
        results.append(weights(pretrained.base("slim")))
    assert results[0] == results[1] != results[2]
    pretrained.pretrain("small")
    assert epochs_trained(events) == 4, "they do not concern the other backbone, which was trained before"
