import numpy as np
import pytest

from components.core.errors import InputError
from components.core.storage.arrays import LogitsDirectory, WellLogits, read_logits, write_logits
from components.core.storage.task_status import StatusReader
from components.ensemble.step import main, run
from tests.components.core.manifests import manifest

K = 5


def fold_directory(path, fold, oof, unlabelled=("U_1_A", "U_1_B"), holdout=(), cell_type="HUVEC", classes=K, scale=1.0):
    rng = np.random.default_rng(fold)

    def logits(ids):
        return WellLogits(tuple(ids), (scale * rng.standard_normal((len(ids), classes))).astype(np.float32))

    path.mkdir()
    wells = {"oof": logits(oof), "unlabelled": logits(unlabelled), "holdout": logits(holdout)}
    history = [{"step": "pretrain", "fold": fold, "epoch": 1}]
    meta = {"cell_type": cell_type, "fold": fold, "folds": [{"fold": fold, "validated": bool(oof)}], "history": history}
    write_logits(path, LogitsDirectory(wells, meta))
    return path


@pytest.fixture
def folds(tmp_path):
    return [
        fold_directory(tmp_path / "f0", 0, ["A_1_A", "A_1_B"], holdout=["H_1_A"]),
        fold_directory(tmp_path / "f1", 1, ["B_1_A"], unlabelled=("U_1_B", "U_1_A"), holdout=["H_1_A"]),
        fold_directory(tmp_path / "f2", 2, [], holdout=["H_1_A"]),
    ]


def test_joins_out_of_fold_wells_and_averages_the_others_by_id_in_any_order(folds, tmp_path):
    run(folds, tmp_path / "out")
    parts, merged = [read_logits(path) for path in folds], read_logits(tmp_path / "out")
    assert merged.wells["oof"].ids_W == ("A_1_A", "A_1_B", "B_1_A")
    np.testing.assert_array_equal(merged.wells["oof"].logits_WK[2:], parts[1].wells["oof"].logits_WK)
    for role, ids in (("unlabelled", ("U_1_A", "U_1_B")), ("holdout", ("H_1_A",))):
        expected = sum(part.wells[role].take(ids).astype(np.float64) for part in parts) / 3
        np.testing.assert_allclose(merged.wells[role].take(ids), expected, rtol=1e-6)
        assert merged.wells[role].logits_WK.dtype == np.float32
    assert [(entry["fold"], entry["validated"]) for entry in merged.meta["folds"]] == [(0, True), (1, True), (2, False)]
    assert [record["fold"] for record in merged.meta["history"]] == [0, 1, 2]
    run(folds[::-1], tmp_path / "again")
    again = read_logits(tmp_path / "again")
    assert again.meta == merged.meta
    for role, wells in merged.wells.items():
        assert sorted(wells.ids_W) == sorted(again.wells[role].ids_W)
        np.testing.assert_array_equal(wells.logits_WK, again.wells[role].take(wells.ids_W))


def test_wells_of_overlapping_folds_are_averaged_over_those_that_hold_them_out(folds, tmp_path):
    folds.append(fold_directory(tmp_path / "f3", 3, ["B_1_A", "C_1_A", "A_1_B"], holdout=["H_1_A"]))
    run(folds, tmp_path / "out", shared={"A_1_B", "B_1_A"})
    parts, merged = [read_logits(path).wells["oof"] for path in folds], read_logits(tmp_path / "out").wells["oof"]
    assert merged.ids_W == ("A_1_A", "A_1_B", "B_1_A", "C_1_A")
    for well, own in (("A_1_A", [0]), ("A_1_B", [0, 3]), ("B_1_A", [1, 3]), ("C_1_A", [3])):
        expected = np.mean([parts[k].take([well]).astype(np.float64) for k in own], axis=0)
        np.testing.assert_allclose(merged.take([well]), expected, rtol=1e-6)


def test_a_damaged_or_missing_file_is_named_and_recorded_under_the_run(folds, folder_store, tmp_path):
    store, screen, inputs = folder_store, tmp_path / "screen.json", [str(path) for path in folds]
    screen.write_text(manifest([], run="tiny-1", store=store.uri("")).model_dump_json())
    main(str(screen), inputs, str(tmp_path / "out"))
    assert [each.status.state for each in StatusReader(store, "tiny-1").read()] == ["finished"]
    content = (folds[1] / "logits.npz").read_bytes()
    (folds[1] / "logits.npz").write_bytes(content[:100])
    with pytest.raises(InputError, match="f1: damaged"):
        main(str(screen), inputs, str(tmp_path / "out"))
    (folds[0] / "meta.json").unlink()  # so that the cell type is unknown
    with pytest.raises(InputError, match=r"f0: damaged.*No such file.*meta\.json"):
        main(str(screen), inputs, str(tmp_path / "out"))
    with pytest.raises(InputError, match="at least one"):
        run([], tmp_path / "out")
    statuses = [each.status for each in StatusReader(store, "tiny-1").read()]
    records = {each.task: (each.kind, each.message) for each in statuses if each.state == "failed"}
    assert {task: kind for task, (kind, _) in records.items()} == {"ensemble HUVEC": "input", "ensemble": "input"}
    assert "f1: damaged" in records["ensemble HUVEC"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": 0}, r"fold 0 is also in .*f0; give each fold once"),
        ({"cell_type": "RPE"}, "cell type RPE, but .*f0 has HUVEC"),
        ({"classes": 6}, "6 classes, but .*f0 has 5"),
        ({"oof": ["A_1_B"]}, "well A_1_B is out of fold here and in .*f0"),
        ({"unlabelled": ["U_1_A"]}, "unlabelled well U_1_B is only here or only in .*f0"),
        ({"scale": np.inf}, "oof well D_1_A has a logit that is not finite"),
    ],
)
def test_rejects_folds_that_do_not_match(folds, tmp_path, change, message):
    odd = fold_directory(tmp_path / "odd", **{"fold": 3, "oof": ["D_1_A"], "holdout": ["H_1_A"], **change})
    with pytest.raises(InputError, match=message) as caught:
        run([*folds, odd], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f0", "f1", "f2", "odd"]
