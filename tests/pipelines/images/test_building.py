"""What a build prints, without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.errors import StepError
from pipelines.images.building import BuildSettings, _lines, _open_log


def test_two_builds_at_once_have_a_log_each_and_an_earlier_ones_is_replaced(tmp_path: Path):
    path = tmp_path / "cache" / "images-build.log"
    with _open_log(path) as first, _open_log(path) as second:
        first.write("one")
        second.write("two")
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {
        "images-build.log": "one", "images-build-2.log": "two",
    }  # fmt: skip
    with _open_log(path) as third:
        third.write("3")
    assert path.read_text() == "3"


def test_a_build_that_fails_names_its_own_log(tmp_path: Path):
    settings = BuildSettings(None, None, None, None, tmp_path / "images-build.log")
    answer = iter([{"stream": "Step 1/2 : FROM base\n"}, {"error": "exit code 1"}])
    with _open_log(settings.log), _open_log(settings.log) as log:
        with pytest.raises(StepError, match=r"cpu: the build failed \(exit code 1\); .*/images-build-2\.log$"):
            list(_lines(answer, "cpu", settings, log))
        log.flush()
        assert "Step 1/2" in (tmp_path / "images-build-2.log").read_text()
