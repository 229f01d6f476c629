"""`cellsignal models`: what it shows, changes and rejects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from components.core.errors import InputError
from components.core.registry.champion import CHAMPION, promote, read_champion
from components.core.storage.object_store import ObjectStore
from pipelines.cli import app
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.components.core.registry.small_models import put_model


def invoke(store: ObjectStore, *arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["models", *arguments, "--store", store.uri("")], env={"COLUMNS": "200"})
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


def rows(done: Result) -> list[str]:
    return [" ".join(line.split()) for line in done.output.splitlines()]


def generation(store: ObjectStore) -> int:
    champion = read_champion(store)
    return champion.now.generation if champion else 0


def test_a_run_is_published_promoted_listed_and_shown(template: FinishedRun, tmp_path: Path) -> None:
    store = template.copy_to(ObjectStore(tmp_path)).store
    assert f"{store.uri('')}: no models" in invoke(store, "list").output
    line = invoke(store, "publish", KEY).output.splitlines()[-1]
    short = line.split()[1]
    assert line.startswith(f"model {short} published: {store.uri('models')}/{short}")
    assert f"model {short} was published before" in invoke(store, "publish", KEY).output
    listed = rows(invoke(store, "list"))
    assert any(
        line.startswith(f"{short} ") and line.endswith(f"{KEY} HUVEC RPE 50.0→90.0 40.0→70.0") for line in listed
    )
    assert "no model has been promoted yet" in listed
    assert generation(store) == 0

    promoted = invoke(store, "promote", KEY, "--reason", "the  [first]\nof all")
    assert rows(promoted)[-1] == f"model {short} is the champion, generation 1"
    assert rows(invoke(store, "promote", short[:6], "--reason", "again"))[-1] == (
        f"model {short} is the champion already, generation 1"
    )
    assert any(line.startswith(f"*{short} ") for line in rows(invoke(store, "list")))
    shown = rows(invoke(store, "show"))
    assert "folds HUVEC 0 1; RPE 0 1" in shown
    assert any(line.startswith(f"1 {short} ") and line.endswith("the [first] of all") for line in shown)
    card = invoke(store, "show", "champion", "--card").output
    assert card == store.get(next(key for key in store.list("models/") if key.endswith("/card.md"))).decode()


def test_json_is_one_document(published: FinishedRun, tmp_path: Path) -> None:
    store = published.copy_to(ObjectStore(tmp_path)).store
    invoke(store, "promote", KEY, "--reason", "the first")
    listed = json.loads(invoke(store, "list", "--json").stdout)
    (model,) = listed["models"]
    assert (model["run"], model["scores"]["holdout"]["assigned"]["overall"]) == (KEY, 0.7)
    assert (listed["champion"]["fingerprint"], listed["champion"]["generation"]) == (model["fingerprint"], 1)
    shown = json.loads(invoke(store, "show", "--json").stdout)
    assert shown["model"]["fingerprint"] == shown["champion"]["now"]["fingerprint"] == model["fingerprint"]
    assert shown["metrics"]["out_of_fold"]["raw"]["overall"] == 0.5
    store.put(f"models/{model['fingerprint']}/manifest.json", b'{"schema_version": 9}')
    unreadable = json.loads(invoke(store, "list", "--json").stdout)
    assert "schema 9, newer than this version reads (3); upgrade" in unreadable["models"][0]["problem"]
    assert any(line.endswith("– (cannot be read)") for line in rows(invoke(store, "list")))


def test_tables_fit_the_terminal_with_whole_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.options.FULL_WIDTH", 80)  # that of the output here, which is no terminal
    store, key = ObjectStore(tmp_path), "weekly-plates-2026-november-of-the-lab-0123456789ab"
    promote(store, put_model(store, 1), "the first")
    old = put_model(store, 2, run=key, cell_types=("HUVEC", "RPE", "HEPG2", "U2OS"))
    for arguments in (["list"], ["gc", "--older-than", "0m", "--dry-run"]):
        lines = invoke(store, *arguments).output.splitlines()
        assert any(old[:12] in line for line in lines)
        header = next(number for number, line in enumerate(lines) if "model" in line and "run" in line)
        begin = lines[header].index("run")
        column = "".join(line[begin:].partition(" ")[0] for line in lines[header:])
        assert key in column
        assert all(len(line) <= 80 for line in lines[header : header + 6])


def test_exits_with_4_if_another_model_was_promoted_since(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    first, second = put_model(store, 1), put_model(store, 2)
    invoke(store, "promote", first[:8], "--reason", "x", "--expect", "0")
    before = store.get(CHAMPION)
    late = invoke(store, "promote", second[:8], "--reason", "y", "--expect", "0", code=4)
    assert f"has promoted {first[:12]} (generation 1); look at it with `cellsignal models show`" in late.output
    assert "not promoted" in invoke(store, "rollback", "--reason", "y", "--expect", "7", code=4).output
    assert store.get(CHAMPION) == before


def test_models_are_listed_if_the_champion_is_gone_but_not_if_its_record_is_damaged(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    first, second = put_model(store, 1), put_model(store, 2)
    promote(store, first, "the first")
    store.delete_prefix(f"models/{first}/")
    listed = invoke(store, "list").output
    assert second[:12] in listed
    assert f"the champion {first[:12]} (generation 1) is not there any more" in listed
    store.put(CHAMPION, b"{")
    for arguments in ([], ["--json"]):
        done = CliRunner().invoke(app, ["models", "list", *arguments, "--store", store.uri("")])
        assert done.output == ""
        assert "champion.json: damaged, not a champion's record" in str(done.exception)


def test_gc_shows_what_it_removes_and_keeps_champions(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    models = [put_model(store, number) for number in range(4)]
    for model in models[:3]:
        promote(store, model, "x")
    assert f"{store.uri('models')}: nothing to remove" in invoke(store, "gc", "--yes").output
    everything = store.list("models/")
    arguments = ["models", "gc", "--older-than", "0m", "--keep", "1", "--store", store.uri("")]
    shown = CliRunner().invoke(app, arguments)
    assert "nothing was removed: there is no terminal to confirm on" in str(shown.exception)
    assert f"{store.uri('models')}: older than 0m, and neither the champion nor one of the 1 before it" in shown.output
    assert [line for line in rows(shown) if line.startswith("model ")] == [
        line for line in rows(shown) if models[0][:12] in line or models[3][:12] in line
    ]
    assert "nothing was removed (--dry-run)" in invoke(store, "gc", "--older-than", "0m", "--dry-run").output
    assert store.list("models/") == everything
    assert "removed 4 objects" in invoke(store, "gc", "--older-than", "0m", "--keep", "1", "--yes").output
    assert {key.split("/")[1] for key in store.list("models/")} == {"champion.json", models[1], models[2]}


def test_store_gc_leaves_models(published: FinishedRun, tmp_path: Path) -> None:
    run = published.copy_to(ObjectStore(tmp_path))
    invoke(run.store, "promote", KEY, "--reason", "x")
    before = {key: run.store.get(key) for key in run.store.list("models/")}
    for arguments in (["forget", KEY], ["gc", "--older-than", "0m"]):
        done = CliRunner().invoke(app, ["store", *arguments, "--yes", "--store", run.store.uri("")])
        assert done.exit_code == 0, done.output
    assert run.store.list("finished/") == run.store.list("plates/") == []
    assert {key: run.store.get(key) for key in run.store.list("models/")} == before
    assert "champion" in invoke(run.store, "show").output


def test_rejects_bad_usage_in_one_line_and_leaves_the_registry(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    model = put_model(store, 1)[:8]
    before = store.list("")
    for arguments, message in (
        (["show"], "models/champion.json: no model has been promoted yet"),
        (["promote", model, "--reason", " "], "--reason: is empty; give the reason"),
        (["promote", model, "--reason", "x", "--expect", "3"], "there is no champion, but generation 3 is expected"),
        (["promote", "some-run", "--reason", "x"], "run some-run: no such run below"),
        (["publish", "some/where"], "run some/where: neither a key nor a folder of a run"),
        (["rollback", "--reason", "x"], "there is no champion to go back from; promote a model first"),
        (["gc", "--older-than", "soon"], "--older-than 'soon': expected a number followed by m, h, d or w"),
    ):
        with pytest.raises(InputError) as raised:
            invoke(store, *arguments)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    store.put(CHAMPION, b"{")
    change = ["--reason", "x"]
    for arguments in (["list"], ["show"], ["promote", model, *change], ["rollback", *change], ["gc"]):
        with pytest.raises(InputError, match=r"models/champion\.json: damaged"):
            invoke(store, *arguments)
    assert store.get(CHAMPION) == b"{"
    assert store.list("") == sorted([*before, CHAMPION])
