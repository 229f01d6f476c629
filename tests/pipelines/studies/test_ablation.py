"""An ablation on screens and networks so small that a row takes seconds, in a real store; and the study file."""

import json
from pathlib import Path

import pandas as pd
import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.cli import main
from pipelines.studies import ablation
from pipelines.studies.ablation import SHIPPED, read_study, run_ablation
from pipelines.studies.study import Study
from tests.pipelines.studies.test_growth import CONFIG
from tests.pipelines.tiny_run import Cellsignal

STUDY = """
config: tiny.yaml
set: [mean_teacher.enabled=false, prior.enabled=false, "folds.train=[0]"]
screens:
  simulated: {}
  folder: {screen: "{data}/screen"}
rows:
  as it is: []
  softmax: [head.kind=softmax]
  one view: [predict.views=1]
"""


SAME = {("mitocheck", "standardised by image"), ("mitocheck", "classes balanced by 0.5")} | {
    (name, row)
    for name in ("shared", "specific", "alone", "texture", "shape", "few", "real")
    for row in ("classes drawn as they are", "standardised by plate")
}
"""Rows that change nothing on a kind of screen, which has the setting already."""


def written(folder: Path, text: str = STUDY) -> Path:
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


@pytest.mark.slow
def test_rows_are_scored_on_every_screen_and_equal_tasks_run_once(tmp_path: Path):
    study, cellsignal = written(tmp_path), Cellsignal(tmp_path)
    simulated = cellsignal("simulate", "--config", "tiny.yaml", "--out", "data", "--set", "seed=5")
    assert simulated.returncode == 0, simulated.stderr
    arguments = (
        "ablation",
        "--study",
        study,
        "--out",
        "out",
        "--store",
        "store",
        "--seeds",
        "7",
        "--path",
        "data=data",
    )
    done = cellsignal(*arguments)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    scores = content["scores"]
    assert list(scores) == ["simulated", "folder"]
    for rows in scores.values():
        assert list(rows) == ["as it is", "softmax", "one view"]
        assert rows["as it is"] == rows["one view"]  # the same tasks: the configuration has one view already
        for row in rows.values():
            assert 0 <= row["7"]["overall"] <= 1
            assert row["7"]["cpu_seconds"] > 0
    tasks = [json.loads(file.read_text())["step"] for file in (tmp_path / "out").glob("work/tasks/*/done.json")]
    assert tasks.count("pretrain") == 2 * 2 * 2, "screens, rows with a head of their own, networks"
    assert tasks.count("simulate") == 1
    # A score is the share of wells whose raw prediction is the truth.
    truths = [pd.read_csv(f, dtype=str) for f in (tmp_path / "out").glob("work/tasks/*/out/truth.csv")]
    wells = len(truths[0])
    hits = {round(row["7"]["overall"] * wells, 6) % 1 for row in scores["simulated"].values()}
    assert hits == {0.0}
    assert (
        f"| as it is | {scores['simulated']['as it is']['7']['overall']:.3f} / "
        in (tmp_path / "out" / "ablation.md").read_text()
    )


@pytest.mark.slow
def test_a_failed_task_is_named_by_its_row_and_screen(tmp_path: Path):
    study = written(tmp_path, STUDY.replace("predict.views=1", "folds.count=3"))
    line = Cellsignal(tmp_path).refused(
        "ablation", "--study", study, "--out", "out", "--store", "store", "--rows", "one view", "--seeds", "7"
    )
    assert line.startswith("error: simulated 7, one view: normalize: folds.count is 3, but")


def test_a_study_names_its_screens_rows_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study, folder = written(tmp_path), f"data={tmp_path}"
    assert list(read_study(study, [], [], []).screens) == ["simulated"], "the folder of the other is not given"
    assert "folder (--path data=DIR)" in capsys.readouterr().out
    found = read_study(study, [folder], ["folder"], ["softmax"])
    assert found.screens["folder"].screen == f"{tmp_path}/screen"
    assert list(found.rows) == ["softmax"]
    assert capsys.readouterr().out == ""
    for arguments, message in [
        (([], ["folder"], []), "folder: give --path data=DIR"),
        (([], ["other"], []), r"--screens: study\.yaml has no other; known are simulated, folder"),
        (([], [], ["hard"]), "--rows: study.yaml has no hard; known are as it is"),
        ((["data"], [], []), "--path 'data': expected NAME=DIR"),
        (([f"data={tmp_path}/no"], [], []), "--path data=.*/no: no such folder"),
        (([f"date={tmp_path}"], [], []), r"--path: study\.yaml has no folder date; known are data"),
    ]:
        with pytest.raises(InputError, match=message):
            read_study(study, *arguments)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  one view:", '  "one, two":', r"study\.yaml: row 'one, two': --rows takes commas as separators"),
        ("simulated: {}", "simulated: {without: [hard]}", r"study\.yaml: screen 'simulated': without: .* row 'hard'"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(tmp_path: Path, old, new, message):
    with pytest.raises(InputError, match=message):
        read_study(written(tmp_path, STUDY.replace(old, new)), [], [], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("head.kind=soft", "head.kind: input should be .*, got 'soft'"),
        ("head.kind", "'head.kind': expected KEY=VALUE"),
        ('"pretrain.milestones=[9]"', "pretrain: learning_rates must have one more"),
        ("standardise.wells=controls, standardise.domain=none", "standardise: wells controls has no meaning"),
    ],
)
def test_a_mistake_in_any_row_is_named_by_file_row_and_screen_before_any_work(tmp_path: Path, change, message):
    file = written(tmp_path, STUDY.replace("predict.views=1", change).replace("tiny.yaml", "extending.yaml"))
    (tmp_path / "extending.yaml").write_text("extends: tiny.yaml\nname: extending\n")
    study = read_study(file, [f"data={tmp_path}"], ["folder"], [])
    with pytest.raises(InputError, match=rf"study\.yaml: row 'one view', screen 'folder': {message}"):
        run_ablation(file, study, ["1"], [], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_the_configuration_itself_is_named_by_its_file(tmp_path: Path):
    file = written(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG.replace("views: 1", "views: 0"))
    with pytest.raises(InputError, match=r"^\S*tiny\.yaml: predict\.views"):
        run_ablation(file, read_study(file, [], [], []), ["1"], [], None, tmp_path / "out")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A call with options of `ablation`, whose tasks are replaced by scores; returns the line of a refusal, else ablation.json."""
    written(tmp_path)
    scored = iter(range(100))
    monkeypatch.setattr(Study, "run", lambda _study, _config, cases, _table: [case.score() for case in cases])
    monkeypatch.setattr(ablation, "_score", lambda _case: {"overall": next(scored) / 100, "cpu_seconds": 1.0})

    def call(*options: str, refused: bool = False):
        arguments = ["--study", "study.yaml", "--out", "out", "--store", "store", *options]
        cellsignal = Cellsignal(tmp_path)
        if refused:
            return cellsignal.refused("ablation", *arguments)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["cellsignal", "ablation", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return json.loads((tmp_path / "out" / "ablation.json").read_text())

    return call


def test_the_table_keeps_the_scores_of_earlier_calls(tmp_path: Path, call):
    first = call("--screens", "simulated", "--rows", "softmax", "--seeds", "1")["scores"]
    assert list(first) == ["simulated"]
    call("--screens", "simulated", "--rows", "as it is", "--seeds", "1,2")
    scores = call("--path", f"data={tmp_path}", "--screens", "folder", "--rows", "softmax", "--seeds", "3")["scores"]
    assert scores["simulated"]["softmax"] == first["simulated"]["softmax"]
    assert {s: {row: list(seeds) for row, seeds in rows.items()} for s, rows in scores.items()} == {
        "simulated": {"softmax": ["1"], "as it is": ["1", "2"]},
        "folder": {"softmax": ["3"], "as it is": []},
    }
    assert "| as it is | 0.015 ± 0.007 / 1 |  |" in (tmp_path / "out" / "ablation.md").read_text()
    again = call("--screens", "simulated", "--rows", "softmax", "--seeds", "1")["scores"]
    assert again["simulated"]["softmax"]["1"] != first["simulated"]["softmax"]["1"], "the latest score counts"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("head.kind=softmax", "head.scale=9", "row 'softmax'"),
        ("simulated: {}", "simulated: {set: [simulate.effect=2]}", "screen 'simulated'"),
        ("set: [mean", "set: [predict.views=2, mean", "the study's `set`"),
    ],
)
def test_an_earlier_row_or_screen_of_another_definition_is_refused(tmp_path: Path, call, old, new, named):
    before = call()
    written(tmp_path, STUDY.replace(old, new))
    assert call(refused=True) == (
        f"error: --out out: {named} had another definition in an earlier call; choose another --out"
    )
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == before


def test_other_changes_of_all_rows_and_repeated_seeds_are_refused(call):
    call("--set", "predict.views=2")
    assert "--set had another definition in an earlier call" in call(refused=True)
    assert "--seeds: different numbers are expected, got [7, 7]" in call("--seeds", "7,7", refused=True)


def test_a_row_that_may_not_run_on_a_screen_does_not_change_the_screen(tmp_path: Path, call):
    call("--rows", "as it is")
    written(tmp_path, STUDY.replace("simulated: {}", "simulated: {without: [softmax]}"))
    assert list(call()["scores"]["simulated"]["one view"]) == ["1"]
    assert "all screens chosen go without the rows chosen" in call("--rows", "softmax", refused=True)


@pytest.mark.parametrize(
    ("screen", "change", "message"),
    [
        (
            "folder",
            "folds={count: 1}",
            "row 'as it is', screen 'folder': its out-of-fold wells are scored; set folds.count",
        ),
        (
            "simulated",
            "simulate.unlabelled={}",
            "row 'as it is', screen 'simulated': its unlabelled wells are scored; set",
        ),
    ],
)
def test_a_screen_whose_scored_wells_are_missing_is_refused(tmp_path: Path, screen, change, message):
    file = written(tmp_path)
    study = read_study(file, [f"data={tmp_path}"], [screen], [])
    with pytest.raises(InputError, match=message):
        run_ablation(file, study, ["1"], [change], None, tmp_path / "out")


def test_every_row_of_the_shipped_study_is_a_valid_configuration(tmp_path: Path):
    study = read_study(SHIPPED, [f"rxrx1={tmp_path}", f"mitocheck={tmp_path}"], [], [])
    for name, kind in study.screens.items():
        as_shipped = RunConfig.load(study.config, [*study.set, *kind.set])
        assert set(kind.without) < set(study.rows)
        for row in study.rows.keys() - set(kind.without):
            changes = study.rows[row]
            config = RunConfig.load(study.config, [*study.set, *kind.set, *changes])
            changed = config != as_shipped
            assert changed == bool(changes) or (name, row) in SAME, (name, row)
