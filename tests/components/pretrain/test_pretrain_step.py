import json

import pytest
import torch

from components.core.errors import InputError
from components.core.learning.checkpoints import load_weights
from components.core.learning.network import Classifier
from components.core.progress import EVENTS_VARIABLE
from components.core.storage.manifest import Manifest
from components.normalize.step import run as normalize
from components.pretrain.step import run
from tests.components.core.learning.tiny_networks import PRETRAIN
from tests.components.pretrain.training_run import TrainingRun, epochs_trained, files, weights
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> tuple[MemoryStore, Manifest]:
    folder, store = tmp_path_factory.mktemp("packed"), MemoryStore()
    TinyScreen(folder / "screen")
    normalize(CONFIG, folder / "screen", store, folder / "s.json", folder / "h.json", folder / "l.csv")
    return store, Manifest.read(folder / "s.json")


def test_writes_weights_history_and_what_they_are(screen, tmp_path):
    store, manifest = screen
    run(PRETRAIN, store, manifest, 1, "slim", tmp_path / "w")
    assert set(files(tmp_path / "w")) == {"weights.safetensors", "history.json", "meta.json"}
    meta = json.loads((tmp_path / "w" / "meta.json").read_text())
    assert meta == {"step": "pretrain", "fold": 1, "cell_type": None, "backbone": "slim", "validated": True}
    history = json.loads((tmp_path / "w" / "history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2]
    for record in history:
        assert record.items() >= {"step": "pretrain", "fold": 1, "backbone": "slim", "epochs": 2}.items()
        assert 0.0 <= record["accuracy"] <= 1.0
    network = Classifier(PRETRAIN.backbone("slim"), PRETRAIN.head, len(manifest.vocabulary.classes))
    load_weights(network, tmp_path / "w" / "weights.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


def test_seed_fold_and_backbone_decide_the_weights(screen, tmp_path):
    store, manifest = screen

    def trained(name, seed=3, fold=0):
        settings = PRETRAIN.model_copy(update={"seed": seed})
        run(settings, store, manifest, fold, "slim", tmp_path / name)
        return weights(tmp_path / name)

    first = trained("a")
    torch.rand(3)
    assert trained("b") == first
    assert trained("c", seed=4) != first
    assert trained("d", fold=1) != first


def test_an_unknown_backbone_is_an_error(screen, tmp_path):
    store, manifest = screen
    with pytest.raises(InputError, match=r"backbone 'big' is not configured; backbones are \['small', 'slim'\]"):
        run(PRETRAIN, store, manifest, 0, "big", tmp_path / "w")


def test_finished_work_is_fetched(store, tmp_path, monkeypatch):
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    TinyScreen(tmp_path / "screen")
    one = TrainingRun(tmp_path / "one", store.prefix)
    one.normalize(tmp_path / "screen")
    one.pretrain("slim")
    assert epochs_trained(events) == 2
    before = files(one.base("slim"))
    one.pretrain("slim")
    assert (epochs_trained(events), files(one.base("slim"))) == (2, before)
    one.fold = 1
    one.pretrain("slim")
    assert epochs_trained(events) == 4
