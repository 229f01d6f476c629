"""Finished outputs: work is done once, damaged objects are replaced, and nothing half-written is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from components.core.errors import InputError, StepError
from components.core.storage.digests import file_names
from components.core.storage.finished import fetch_finished, run_once
from components.core.storage.object_store import ObjectStore

INPUTS = {"config": '{"epochs": 2}', "screen": "5f0c", "code": "77aa"}


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return ObjectStore(tmp_path_factory.mktemp("store"))


class Work:
    """Writes a file and a folder, and counts how often."""

    def __init__(self, text: str = "weights") -> None:
        self.calls = 0
        self.text = text

    def __call__(self, outputs: Mapping[str, Path]) -> None:
        self.calls += 1
        outputs["model"].write_text(self.text)
        (outputs["logits"] / "deep").mkdir(parents=True)
        (outputs["logits"] / "deep" / "meta.json").write_text("{}")
        (outputs["logits"] / "logits.npz").write_bytes(b"\0" * 1000)
        if "third" in outputs:
            outputs["third"].mkdir()


def _outputs(folder: Path) -> dict[str, Path]:
    return {"model": folder / "model", "logits": folder / "logits"}


def _content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in file_names(folder)}


def _reused(
    store: ObjectStore, folder: Path, work: Work, step: str = "finetune", more: str = "", **changes: str
) -> bool:
    """Runs the step; whether its outputs came from the store."""
    before = work.calls
    outputs = _outputs(folder) | ({more: folder / more} if more else {})
    run_once(store, step, {**changes, **{name: INPUTS[name] for name in INPUTS.keys() - changes.keys()}}, outputs, work)
    return work.calls == before


def _stored(store: ObjectStore, suffix: str) -> str:
    return next(key for key in store.list("finished/") if key.endswith(suffix))


def test_the_same_inputs_are_worked_on_once(either_store: ObjectStore, tmp_path: Path) -> None:
    work = Work()
    assert [_reused(either_store, tmp_path / name, work) for name in ("one", "two")] == [False, True]
    assert _content(tmp_path / "one") == _content(tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["logits", "model"]


def test_a_change_of_anything_means_new_work(store: ObjectStore, tmp_path: Path) -> None:
    work = Work()
    changes = [{}, {"step": "pretrain"}, {"more": "third"}, *({name: "other"} for name in INPUTS)]
    for reused in (False, True):
        assert [_reused(store, tmp_path, work, **change) for change in changes] == [reused] * len(changes)


def test_outputs_replace_what_is_at_their_paths(store: ObjectStore, tmp_path: Path) -> None:
    outputs = _outputs(tmp_path)
    for _ in range(2):  # by work, then from the store
        outputs["logits"].mkdir(exist_ok=True)
        (outputs["logits"] / "stale").write_text("")
        if outputs["model"].is_file():
            outputs["model"].unlink()
        (outputs["model"] / "folder").mkdir(parents=True)
        run_once(store, "finetune", INPUTS, outputs, Work())
        assert outputs["model"].read_text() == "weights"
        assert sorted(path.name for path in outputs["logits"].iterdir()) == ["deep", "logits.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logits", "model"]


def test_failed_or_incomplete_work_keeps_the_earlier_output_and_leaves_nothing_else(
    store: ObjectStore, tmp_path: Path
) -> None:
    outputs = _outputs(tmp_path)
    outputs["model"].write_text("earlier")

    def crash(paths: Mapping[str, Path]) -> None:
        Work("half")(paths)
        raise ValueError("loss is not finite")

    with pytest.raises(ValueError, match="loss is not finite"):
        run_once(store, "finetune", INPUTS, outputs, crash)
    with pytest.raises(StepError, match="finetune: its output 'logits' was not written"):
        run_once(store, "finetune", INPUTS, outputs, lambda paths: paths["model"].touch())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert outputs["model"].read_text() == "earlier"
    assert store.list() == []


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("/model", lambda _: b"Weights"),  # same size
        ("/logits.npz", None),
        ("/done.json", lambda record: record[:50]),
        ("/done.json", lambda record: record.replace(b"logits/logits.npz", b"logits/../../escaped")),
    ],
    ids=["other content", "missing file", "truncated record", "path outside"],
)
def test_a_damaged_output_is_made_again(
    store: ObjectStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    damage: Callable[[bytes], bytes] | None,
) -> None:
    work = Work()
    _reused(store, tmp_path / "one", work)
    key = _stored(store, suffix)
    before = store.get(key)
    store.delete(key)
    if damage:
        store.put(key, damage(before))
        assert store.get(key) != before
    assert not _reused(store, tmp_path / "two", work)
    assert "warning: finetune: finished output is damaged in the store" in capsys.readouterr().out
    assert _reused(store, tmp_path / "three", work)
    assert _content(tmp_path / "one") == _content(tmp_path / "two") == _content(tmp_path / "three")
    assert not (tmp_path.parent / "escaped").exists()
    assert len(store.list("finished/")) == 4, "the damaged output's files are gone"


def test_a_record_whose_answer_is_lost_keeps_its_outputs(store: ObjectStore, tmp_path: Path, monkeypatch) -> None:
    put = ObjectStore.put_if_version

    def lose_the_answer(*arguments: Any) -> bool:
        put(*arguments)
        raise StepError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put_if_version", lose_the_answer)
        with pytest.raises(StepError, match="no answer"):
            _reused(store, tmp_path / "one", Work())
    assert _reused(store, tmp_path / "two", Work())


def test_two_runs_that_find_the_same_damage_keep_one_complete_result(store: ObjectStore, tmp_path: Path) -> None:
    _reused(store, tmp_path / "zero", Work())
    store.delete(_stored(store, "/logits.npz"))

    def work(paths: Mapping[str, Path]) -> None:
        _reused(store, tmp_path / "one", Work("one"))  # has found the damage as well
        Work("two")(paths)

    run_once(store, "finetune", INPUTS, _outputs(tmp_path / "two"), work)
    assert (tmp_path / "two" / "model").read_text() == "two"
    assert _reused(store, tmp_path / "later", Work())
    assert (tmp_path / "later" / "model").read_text() == "one"
    assert b"two" not in [store.get(key) for key in store.list("finished/")]


def test_two_runs_side_by_side_record_one_complete_result(store: ObjectStore, tmp_path: Path) -> None:
    together = Barrier(2)

    def run(name: str) -> None:
        def work(paths: Mapping[str, Path]) -> None:
            together.wait(timeout=30)
            Work(name)(paths)

        run_once(store, "finetune", INPUTS, _outputs(tmp_path / name), work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, ["one", "two"]))
    assert [(tmp_path / name / "model").read_text() for name in ("one", "two")] == ["one", "two"]
    assert len(store.list("finished/")) == 4  # the loser's three files are gone
    assert _reused(store, tmp_path / "later", Work())
    assert _content(tmp_path / "later") in (_content(tmp_path / "one"), _content(tmp_path / "two"))


def test_single_outputs_and_files_are_fetched(store: ObjectStore, tmp_path: Path) -> None:
    prefix, again = (run_once(store, "finetune", INPUTS, _outputs(tmp_path / name), Work()) for name in ("one", "two"))
    assert prefix == again
    fetch_finished(store, prefix, {"logits": tmp_path / "logits"})
    assert _content(tmp_path / "logits") == _content(tmp_path / "one" / "logits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logits", "one", "two"]
    (file,) = fetch_finished(store, prefix, {"logits/logits.npz": tmp_path / "one.npz"})
    assert (file.path, file.size, (tmp_path / "one.npz").stat().st_size) == ("logits/logits.npz", 1000, 1000)
    with pytest.raises(InputError, match=r"the finished outputs are damaged \(done.json has no embeddings\)"):
        fetch_finished(store, prefix, {"embeddings": tmp_path / "embeddings"})
    store.delete(_stored(store, "/logits.npz"))
    with pytest.raises(InputError, match=r"the finished outputs are damaged .* is missing"):
        fetch_finished(store, prefix, {"logits": tmp_path / "again"})
    store.delete_prefix(prefix)
    with pytest.raises(InputError, match="the finished outputs are gone"):
        fetch_finished(store, prefix, {"logits": tmp_path / "more"})
