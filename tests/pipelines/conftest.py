"""Fixtures of the command line's tests: the command, a tiny configuration, and screens with and without images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.components.core.registry.finished_run import model, published, template
from tests.pipelines.images.registry_server import serve_registry
from tests.pipelines.tiny_run import CONFIG, Cellsignal, only_huvec
from tests.tiny_screen import TinyScreen

__all__ = ["model", "published", "template"]


@pytest.fixture(scope="session", autouse=True)
def _quick_kfp() -> Iterator[None]:
    """KFP looks up its caller's name by inspect.stack() at each setting of a task: with pytest's stack and modules, 100 ms each."""
    from kfp.dsl.pipeline_task import PipelineTask

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PipelineTask, "_ensure_container_spec_exists", lambda self: None)
        yield


@pytest.fixture
def cellsignal(tmp_path: Path) -> Cellsignal:
    return Cellsignal(tmp_path)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def tables(tmp_path: Path) -> TinyScreen:
    """A screen without images, for what must be found before any image is looked for."""
    return only_huvec(TinyScreen(tmp_path / "screen", imaged=(), named=True))


@pytest.fixture
def tiny_screen(tmp_path: Path) -> TinyScreen:
    """The screen with its images."""
    return only_huvec(TinyScreen(tmp_path / "screen", imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03")))


@pytest.fixture
def registry() -> Iterator[tuple[str, dict[str, int]]]:
    """An image registry: its place, and what it answers for a repository."""
    with serve_registry() as running:
        yield running
