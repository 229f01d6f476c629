"""An ablation on screens and networks so small that a row takes seconds, in a real store; and the study file."""

import json
from pathlib import Path

import pandas as pd
import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.studies.ablation import SHIPPED, read_study, run_ablation
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


def test_a_study_names_its_screens_rows_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study = written(tmp_path)
    assert list(read_study(study, [], [], []).screens) == ["simulated"], "the folder of the other is not given"
    assert "folder (--path data=DIR)" in capsys.readouterr().out
    found = read_study(study, ["data=/d"], ["folder"], ["softmax"])
    assert found.screens["folder"].screen == "/d/screen"
    assert list(found.rows) == ["softmax"]
    assert capsys.readouterr().out == ""
    for arguments, message in [
        (([], ["folder"], []), "folder: give --path data=DIR"),
        (([], ["other"], []), r"--screens: study\.yaml has no other; known are simulated, folder"),
        (([], [], ["hard"]), "--rows: study.yaml has no hard; known are as it is"),
        ((["data"], [], []), "--path 'data': expected NAME=DIR"),
        ((["date=/d"], [], []), r"--path: study\.yaml has no folder date; known are data"),
    ]:
        with pytest.raises(InputError, match=message):
            read_study(study, *arguments)


@pytest.mark.parametrize(
    ("screen", "change", "message"),
    [
        ("folder", "folds={count: 1}", "folder, as it is: its out-of-fold wells are scored; set folds.count"),
        ("simulated", "simulate.unlabelled={}", "simulated, as it is: its unlabelled wells are scored; set"),
    ],
)
def test_a_screen_whose_scored_wells_are_missing_is_refused(tmp_path: Path, screen, change, message):
    study = read_study(written(tmp_path), ["data=/d"], [screen], [])
    with pytest.raises(InputError, match=message):
        run_ablation(study, ["1"], [change], None, tmp_path / "out")


def test_every_row_of_the_shipped_study_is_a_valid_configuration():
    study = read_study(SHIPPED, ["rxrx1=/a", "mitocheck=/b"], [], [])
    for name, kind in study.screens.items():
        as_shipped = RunConfig.load(study.config, [*study.set, *kind.set])
        assert set(kind.without) < set(study.rows)
        for row in study.rows.keys() - set(kind.without):
            changes = study.rows[row]
            config = RunConfig.load(study.config, [*study.set, *kind.set, *changes])
            changed = config != as_shipped
            assert changed == bool(changes) or (name, row) in SAME, (name, row)
