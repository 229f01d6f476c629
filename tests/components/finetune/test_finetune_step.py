import json

import pytest
import torch

from components.core.errors import InputError
from components.core.learning.weight_files import load_pairs
from components.finetune.step import run as run_step
from tests.components.core.learning.tiny_networks import CPU, MEAN_TEACHER
from tests.components.pretrain.training_run import BACKBONES, weights


def test_pairs_start_from_the_folds_pretrained_weights_in_any_order(pretrained, screen, tmp_path):
    store, manifest = screen
    bases = [pretrained.base(name) for name in BACKBONES]
    for name, order in (("one", bases), ("two", bases[::-1])):
        run_step(MEAN_TEACHER, store, manifest, order, 0, "HUVEC", tmp_path / name)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    meta = json.loads((tmp_path / "one" / "meta.json").read_text())
    # 18 labelled wells in batches of about 8: two steps an epoch, one epoch in the first cycle.
    same = {"step": "finetune", "fold": 0, "cell_type": "HUVEC", "validated": True}
    assert meta == {**same, "epoch": 1, "steps": {"small": 2, "slim": 2}}
    history = json.loads((tmp_path / "one" / "history.json").read_text())
    assert [(r["step"], r["backbone"]) for r in history] == [
        *[("pretrain", name) for name in BACKBONES for _ in range(2)],
        *[("finetune", name) for name in BACKBONES],
    ]
    pairs, _ = load_pairs(tmp_path / "one", MEAN_TEACHER, len(manifest.vocabulary.classes), (6, 16), CPU)
    for pair in pairs:
        student, teacher = pair.student.state_dict(), pair.teacher.state_dict()
        assert all(torch.isfinite(tensor).all() for tensor in student.values())
        assert any(not torch.equal(teacher[name], student[name]) for name in teacher)
    with pytest.raises(InputError, match=r"pretrained-small: weights of fold 0, expected fold 1"):
        run_step(MEAN_TEACHER, store, manifest, bases, 1, "HUVEC", tmp_path / "other fold")
    assert not (tmp_path / "other fold").exists()
