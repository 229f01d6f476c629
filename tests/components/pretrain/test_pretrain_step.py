import json

import torch
from safetensors.torch import save_file

from components.core.learning.network import Classifier
from components.core.learning.step_settings import PretrainSettings
from components.core.learning.weight_files import load_weights, save_weights
from components.core.progress import EVENTS_VARIABLE
from components.core.storage.digests import digest_file
from components.pretrain.step import run
from tests.components.core.learning.tiny_networks import PRETRAIN
from tests.components.pretrain.training_run import TrainingRun, epochs_trained, files, weights
from tests.tiny_screen import TinyScreen


def test_writes_weights_history_and_meta(screen, tmp_path):
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


def starting_from(path: str) -> str:
    """The settings as JSON, where `slim` starts from a file."""
    slim = PRETRAIN.backbone("slim").model_copy(update={"weights": path})
    settings = PRETRAIN.model_copy(update={"backbones": (PRETRAIN.backbone("small"), slim)})
    return settings.model_dump_json()


def test_starts_from_initial_weights_and_records_them(screen, tmp_path, capsys):
    store, manifest = screen
    path = tmp_path / "initial.safetensors"
    torch.manual_seed(77)
    start = Classifier(PRETRAIN.backbone("slim"), PRETRAIN.head, 3, channels=3).backbone
    save_weights(start, path)
    settings = PretrainSettings.model_validate_json(starting_from(str(path)))
    run(PRETRAIN, store, manifest, 0, "slim", tmp_path / "random")
    run(settings, store, manifest, 0, "slim", tmp_path / "started", path)
    assert weights(tmp_path / "random") != weights(tmp_path / "started")
    output = capsys.readouterr().out
    names = start.state_dict().keys()
    assert (
        f"slim: {len(names)} of {len(names)} tensors start from {path}; adapted to its channels: stem.0.weight\n"
        in output
    )
    assert "warning" not in output
    record = json.loads((tmp_path / "started" / "meta.json").read_text())["initial_weights"]
    assert record["sha256"] == digest_file(path)
    assert (set(record["taken"]), record["new"], record["unused"]) == (set(names), [], [])
    # Weights of half a network may be intended, but the user is warned.
    some = {name: tensor for name, tensor in start.state_dict().items() if not name.startswith("exit.")}
    save_file(some, str(path))
    run(settings, store, manifest, 0, "slim", tmp_path / "half", path)
    assert f"warning: slim: {len(some)} of " in capsys.readouterr().out


def test_initial_weights_of_other_content_repeat_the_work_wherever_they_are(store, tmp_path, monkeypatch):
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    TinyScreen(tmp_path / "screen")
    one = TrainingRun(tmp_path / "one", store.prefix)
    one.normalize(tmp_path / "screen")
    path, results = tmp_path / "initial.safetensors", []
    stored = store.uri("models/w.safetensors")
    for seed, address, trained in ((1, str(path), 2), (1, stored, 2), (2, str(path), 4)):
        torch.manual_seed(seed)
        save_weights(Classifier(PRETRAIN.backbone("slim"), PRETRAIN.head, 3).backbone, path)
        store.upload_file(path, "models/w.safetensors")
        one.pretrain_json = starting_from(address)
        one.pretrain("slim")
        assert epochs_trained(events) == trained
        results.append(weights(one.base("slim")))
    assert results[0] == results[1] != results[2]
    # They do not concern the other backbone.
    one.pretrain("small")
    one.pretrain_json = PRETRAIN.model_dump_json()
    one.pretrain("small")
    assert epochs_trained(events) == 6
