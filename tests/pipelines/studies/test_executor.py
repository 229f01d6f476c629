"""One process and one configuration a folder."""

from __future__ import annotations

import json
import os

import pytest

from components.core.errors import InputError, StepError
from pipelines.studies.executor import study_folder


def test_refuses_a_folder_of_another_description(tmp_path):
    out = tmp_path / "out"
    with study_folder(out, {"config": {"a": 1, "b": [2, 3]}, "screen": None}) as folder:
        (folder.folder / "kept").write_text("")
    with study_folder(out, {"config": {"a": 1, "b": [2, 3]}, "screen": None}) as folder:
        assert (folder.folder / "kept").exists()
    with (
        pytest.raises(InputError, match=r"out: holds results of another config\.b; use a new folder"),
        study_folder(out, {"config": {"a": 1, "b": [2, 4]}, "screen": None}),
    ):
        pass
    assert json.loads((out / "work" / "described.json").read_text())["config"] == {"a": 1, "b": [2, 3]}


def test_refuses_a_folder_that_another_process_works_in(tmp_path):
    with (
        study_folder(tmp_path, {}),
        pytest.raises(InputError, match="another run works in this folder"),
        study_folder(tmp_path, {}),
    ):
        pass
    with study_folder(tmp_path, {}):
        pass  # free again


def test_a_file_in_the_way_and_a_full_disk_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"file: cannot be written \(Not a directory\)"),
        study_folder(tmp_path / "file", {}),
    ):
        pass
    with (
        pytest.raises(StepError, match=r"x: cannot be written \(No space left on device\)"),
        study_folder(tmp_path, {}),
    ):
        raise OSError(28, os.strerror(28), "x")


def test_a_damaged_description_is_one_line(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "described.json").write_text("")
    with pytest.raises(InputError, match=r"described\.json is damaged; use a new folder"), study_folder(tmp_path, {}):
        pass
