"""Finished outputs: work is done once, damaged outputs are made again, and nothing half-written is ever seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from components.core.errors import InputError, StepError
from components.core.storage.digests import digest_path
from components.core.storage.finished import fetch_finished, run_once
from components.core.storage.object_store import ObjectStore

INPUTS = {"config": '{"epochs": 2}', "screen": "5f0c", "code": "77aa"}


@pytest.fixture
def store(either_store: ObjectStore) -> ObjectStore:
    return either_store


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


def _outputs(folder: Path) -> dict[str, Path]:
    return {"model": folder / "model", "logits": folder / "logits"}


def _stored(store: ObjectStore, suffix: str) -> str:
    return next(key for key in store.list("finished/") if key.endswith(suffix))


def test_the_same_inputs_are_worked_on_once(store: ObjectStore, tmp_path: Path) -> None:
    work = Work()
    assert run_once(store, "finetune", INPUTS, _outputs(tmp_path / "one"), work) is False
    assert run_once(store, "finetune", dict(reversed(INPUTS.items())), _outputs(tmp_path / "two"), work) is True
    assert work.calls == 1
    assert digest_path(tmp_path / "one") == digest_path(tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["logits", "model"]


@pytest.mark.parametrize("change", ["config", "screen", "code", "step", "outputs"])
def test_a_change_of_anything_means_new_work(store: ObjectStore, tmp_path: Path, change: str) -> None:
    run_once(store, "finetune", INPUTS, _outputs(tmp_path), Work())
    inputs = {**INPUTS, change: "other"} if change in INPUTS else INPUTS
    outputs = _outputs(tmp_path) | ({"third": tmp_path / "third"} if change == "outputs" else {})

    def work(paths: Mapping[str, Path]) -> None:
        Work("new")(paths)
        if "third" in paths:
            paths["third"].write_text("3")

    assert run_once(store, "pretrain" if change == "step" else "finetune", inputs, outputs, work) is False
    assert (tmp_path / "model").read_text() == "new"


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


def test_a_crash_keeps_the_earlier_output_and_leaves_nothing_else(store: ObjectStore, tmp_path: Path) -> None:
    outputs = _outputs(tmp_path)
    outputs["model"].write_text("earlier")

    def crash(paths: Mapping[str, Path]) -> None:
        Work("half")(paths)
        raise ValueError("loss is not finite")

    with pytest.raises(ValueError, match="loss is not finite"):
        run_once(store, "finetune", INPUTS, outputs, crash)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert outputs["model"].read_text() == "earlier"
    assert store.list() == []


def test_reports_an_output_that_was_not_written(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="finetune: its output 'logits' was not written"):
        run_once(store, "finetune", INPUTS, _outputs(tmp_path), lambda paths: paths["model"].touch())
    assert list(tmp_path.iterdir()) == []
    assert store.list() == []


def _replace_content(store: ObjectStore) -> None:
    store.put(_stored(store, "/model"), b"Weights")  # same size


def _delete_file(store: ObjectStore) -> None:
    store.delete(_stored(store, "/logits.npz"))


def _cut_record(store: ObjectStore) -> None:
    key = _stored(store, "/done.json")
    store.put(key, store.get(key)[:50])


def _escape(store: ObjectStore) -> None:
    key = _stored(store, "/done.json")
    record = json.loads(store.get(key))
    record["files"][0]["path"] = "logits/../../escaped"
    store.put(key, json.dumps(record).encode())


@pytest.mark.parametrize("damage", [_replace_content, _delete_file, _cut_record, _escape])
def test_a_damaged_output_is_made_again(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[ObjectStore], None]
) -> None:
    work = Work()
    run_once(store, "finetune", INPUTS, _outputs(tmp_path / "one"), work)
    damage(store)
    assert run_once(store, "finetune", INPUTS, _outputs(tmp_path / "two"), work) is False
    assert "warning: finetune: finished output is damaged in the store" in capsys.readouterr().out
    assert run_once(store, "finetune", INPUTS, _outputs(tmp_path / "three"), work) is True
    assert work.calls == 2
    assert digest_path(tmp_path / "one") == digest_path(tmp_path / "two") == digest_path(tmp_path / "three")
    assert not (tmp_path.parent / "escaped").exists()


def test_a_record_whose_answer_is_lost_keeps_its_outputs(store: ObjectStore, tmp_path: Path, monkeypatch) -> None:
    put = ObjectStore.put_if_absent

    def lose_the_answer(store: ObjectStore, key: str, data: bytes) -> bool:
        put(store, key, data)
        raise StepError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put_if_absent", lose_the_answer)
        with pytest.raises(StepError, match="no answer"):
            run_once(store, "finetune", INPUTS, _outputs(tmp_path / "one"), Work())
    assert run_once(store, "finetune", INPUTS, _outputs(tmp_path / "two"), Work()) is True


def test_two_runs_that_find_the_same_damage_keep_one_complete_result(store: ObjectStore, tmp_path: Path) -> None:
    run_once(store, "finetune", INPUTS, _outputs(tmp_path / "zero"), Work())
    _delete_file(store)

    def work(paths: Mapping[str, Path]) -> None:
        run_once(store, "finetune", INPUTS, _outputs(tmp_path / "one"), Work("one"))  # has found the damage as well
        Work("two")(paths)

    assert run_once(store, "finetune", INPUTS, _outputs(tmp_path / "two"), work) is False
    assert run_once(store, "finetune", INPUTS, _outputs(tmp_path / "later"), Work()) is True
    assert (tmp_path / "later" / "model").read_text() == "one"
    assert len(store.list("finished/")) == 4


def test_two_runs_side_by_side_record_one_complete_result(store: ObjectStore, tmp_path: Path) -> None:
    together = Barrier(2)

    def run(name: str) -> bool:
        def work(paths: Mapping[str, Path]) -> None:
            together.wait(timeout=30)
            Work(name)(paths)

        return run_once(store, "finetune", INPUTS, _outputs(tmp_path / name), work)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, ["one", "two"])) == [False, False]
    assert [(tmp_path / name / "model").read_text() for name in ("one", "two")] == ["one", "two"]
    assert len(store.list("finished/")) == 4  # the loser's three files are gone
    assert run_once(store, "finetune", INPUTS, _outputs(tmp_path / "later"), Work()) is True
    assert digest_path(tmp_path / "later") in (digest_path(tmp_path / "one"), digest_path(tmp_path / "two"))


def test_single_outputs_and_files_are_fetched(store: ObjectStore, tmp_path: Path) -> None:
    prefixes: list[str] = []
    for name in ("one", "two"):  # by work, then from the store
        run_once(store, "finetune", INPUTS, _outputs(tmp_path / name), Work(), finished=prefixes.append)
    assert len(prefixes) == 2
    assert prefixes[0] == prefixes[1]
    fetch_finished(store, prefixes[0], {"logits": tmp_path / "logits"})
    assert digest_path(tmp_path / "logits") == digest_path(tmp_path / "one" / "logits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logits", "one", "two"]
    (file,) = fetch_finished(store, prefixes[0], {"logits/logits.npz": tmp_path / "one.npz"})
    assert (file.path, file.size, (tmp_path / "one.npz").stat().st_size) == ("logits/logits.npz", 1000, 1000)
    with pytest.raises(InputError, match=r"the finished outputs are damaged \(done.json has no embeddings\)"):
        fetch_finished(store, prefixes[0], {"embeddings": tmp_path / "embeddings"})
    _delete_file(store)
    with pytest.raises(InputError, match=r"the finished outputs are damaged .* is missing"):
        fetch_finished(store, prefixes[0], {"logits": tmp_path / "again"})
    store.delete_prefix(prefixes[0])
    with pytest.raises(InputError, match="the finished outputs are gone"):
        fetch_finished(store, prefixes[0], {"logits": tmp_path / "more"})
