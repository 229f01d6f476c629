import json

import pytest
import torch

from components.core.errors import InputError
from components.core.learning.mean_teacher import Pair
from components.core.learning.weight_files import load_pairs, pretrained_folders, save_pairs, weights_digest
from tests.components.core.learning.tiny_networks import CPU, MEAN_TEACHER, SLIM, SMALL, classifier, same, weights_of


def pairs(classes: int = 5) -> list[Pair]:
    return [
        Pair(b.name, classifier(classes, seed, b), classifier(classes, seed + 10, b), step=40 + seed)
        for seed, b in enumerate((SMALL, SLIM))
    ]


def test_pairs_come_back_with_steps_and_history(tmp_path):
    saved, history = pairs(), [{"epoch": 1, "loss": 2.5, "accuracy": None}]
    save_pairs(saved, tmp_path / "out", 3, history, fold=1, cell_type="HUVEC")
    loaded, records = load_pairs(tmp_path / "out", MEAN_TEACHER, 5, 6, CPU)
    assert records == history
    assert [(p.name, p.step) for p in loaded] == [("small", 40), ("slim", 41)]
    for old, new in zip(saved, loaded, strict=True):
        assert same(weights_of(old.student), weights_of(new.student))
        assert same(weights_of(old.teacher), weights_of(new.teacher))
        assert all(p.requires_grad for p in new.student.parameters())
        assert not any(p.requires_grad for p in new.teacher.parameters())
        x = torch.randn(2, 6, 16, 16)
        torch.testing.assert_close(old.student.eval()(x), new.student.eval()(x))  # memory formats differ
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta == {"fold": 1, "cell_type": "HUVEC", "epoch": 3, "steps": {"small": 40, "slim": 41}}


def test_a_run_of_one_backbone_loads_its_own(tmp_path):
    save_pairs(pairs(), tmp_path, 1, [], fold=0, cell_type="HUVEC")
    only = MEAN_TEACHER.model_copy(update={"backbones": (SLIM,)})
    assert [p.name for p in load_pairs(tmp_path, only, 5, 6, CPU)[0]] == ["slim"]


def test_missing_and_misfitting_weights_are_named(tmp_path):
    save_pairs(pairs(), tmp_path, 1, [], fold=0, cell_type="HUVEC")
    with pytest.raises(InputError, match=r"small\.student\.safetensors: weights of another architecture \(head"):
        load_pairs(tmp_path, MEAN_TEACHER, 7, 6, CPU)
    (tmp_path / "slim.teacher.safetensors").unlink()
    with pytest.raises(InputError, match=r"slim\.teacher\.safetensors: cannot read"):
        load_pairs(tmp_path, MEAN_TEACHER, 5, 6, CPU)


def base(folder, **meta):
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"cell_type": None, **meta}))
    return folder


def test_pretrained_folders_come_in_the_configured_order(tmp_path):
    slim, small = (base(tmp_path / name, fold=1, backbone=name) for name in ("slim", "small"))
    assert list(pretrained_folders([slim, small], 1, MEAN_TEACHER).items()) == [("small", small), ("slim", slim)]
    with pytest.raises(InputError, match=r"slim: weights of fold 1, expected fold 0"):
        pretrained_folders([slim, small], 0, MEAN_TEACHER)
    with pytest.raises(InputError, match=r"backbones \['slim'\] do not match the configured ones \['slim', 'small'\]"):
        pretrained_folders([slim], 1, MEAN_TEACHER)
    tuned = base(tmp_path / "tuned", fold=1)
    with pytest.raises(InputError, match="tuned: not one backbone's weights"):
        pretrained_folders([tuned], 1, MEAN_TEACHER)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"fold": 1}'])
def test_a_folder_that_is_not_of_weights_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "meta.json").write_text(content)
    with pytest.raises(InputError, match=r"meta\.json: .*pretrain"):
        weights_digest(tmp_path)
