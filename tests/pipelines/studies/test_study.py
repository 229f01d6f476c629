"""Tasks that configurations share, and a study's folder: one process and one description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.studies.study import Study, opened_study


def digests(study: Study, *changes: str) -> dict[str, set[str]]:
    """Digests by step of a configuration's tasks, which are added."""
    config = RunConfig.load("growth", changes)
    simulated = study.simulate(config)
    made = study.add_training(config, simulated)
    found: dict[str, set[str]] = {}
    for task in (simulated, *made.values()):
        found.setdefault(task.step, set()).add(task.digest)
    return found


def study(tmp_path: Path, code: str = "code") -> Study:
    return Study(tmp_path, 1, Console(), code)


def test_equal_tasks_of_two_configurations_are_one(tmp_path: Path):
    shared = study(tmp_path)
    one, two = digests(shared), digests(shared, "predict.views=1")
    # Only the step that predicts reads the number of views; later steps read its output.
    for step in ("simulate", "normalize", "pretrain", "finetune"):
        assert one[step] == two[step]
    for step in ("pseudo_label", "ensemble", "assign"):
        assert not one[step] & two[step]
    other = digests(study(tmp_path, "other code"))
    assert not any(one[step] & other[step] for step in one)
    seen: set[str] = set()
    for digest, task in shared.tasks.items():
        assert {need.digest for need in task.needs} <= seen, "a task comes after those that it needs"
        seen.add(digest)


def test_the_folds_to_train_do_not_change_the_tasks_of_a_fold(tmp_path: Path):
    shared = study(tmp_path)
    both, first = digests(shared), digests(shared, "folds.train=[0]")
    assert first["normalize"] == both["normalize"]
    for step in ("pretrain", "finetune", "pseudo_label"):
        assert first[step] < both[step]
    assert not first["ensemble"] & both["ensemble"]


def test_a_folder_has_one_description_and_one_process(tmp_path: Path):
    out, described = tmp_path / "out", {"config": {"a": 1, "b": [2, 3]}, "screen": None}

    def opened(content: dict[str, Any]) -> None:
        with opened_study(out, content, 1, Console()) as found:
            (found.folder / "kept").write_text("")

    opened(described)
    opened(described)
    with pytest.raises(InputError, match=r"out: holds results of another config\.b; use a new folder"):
        opened({"config": {"a": 1, "b": [2, 4]}, "screen": None})
    assert (out / "work" / "kept").exists()
    assert json.loads((out / "work" / "described.json").read_text()) == described
    with (
        opened_study(out, described, 1, Console()),
        pytest.raises(InputError, match="another run works in this folder"),
    ):
        opened(described)
    (out / "work" / "described.json").write_text("")
    with pytest.raises(InputError, match=r"described\.json is damaged; use a new folder"):
        opened(described)
