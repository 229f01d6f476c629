"""What is found out before anything starts: each mistake by a line that names it, and nothing else refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.object_store import ObjectStore
from pipelines.checks import check_input, local_files, weights_remarks
from tests.pipelines.tiny_run import CONFIG, only_huvec, truth_of, write_truth
from tests.tiny_screen import TinyScreen


@pytest.fixture
def config(config_file: Path) -> RunConfig:
    return RunConfig.load(str(config_file))


def test_a_good_screen_and_its_whole_or_partial_truth_pass(config: RunConfig, tables: TinyScreen, tmp_path: Path):
    truth = truth_of(tables)
    check_input(config, str(tables.root), None)
    check_input(config, str(tables.root), write_truth(tmp_path / "truth.csv", truth))
    check_input(config, str(tables.root), write_truth(tmp_path / "truth.csv", dict(list(truth.items())[:2])))


def test_faults_of_screen_and_truth_are_reported_together(config: RunConfig, tables: TinyScreen, tmp_path: Path):
    file = tmp_path / "truth.csv"
    file.write_text("id_code,sirna\nHUVEC-03_1_B03,other\n")
    tables.image("HUVEC-03", 1, "B03", 1, 1).unlink()
    with pytest.raises(InputError, match=rf"lacks .* \| and --truth {file} .*'other'"):
        check_input(config, str(tables.root), file)
    file.write_text("id_code,sirna\nHUVEC-03_1_B03,7.0\n")
    with pytest.raises(InputError, match=rf"lacks .* \| --truth {file} can be read: .*'7\.0' as 'sirna_7'"):
        check_input(config, str(tables.root), file)


def test_a_screen_in_a_bucket_is_checked_like_one_in_a_folder(
    config: RunConfig, tables: TinyScreen, store: ObjectStore, tmp_path: Path
):
    files = [path for path in tables.root.rglob("*") if path.is_file()]
    store.put_many((f"screen/{path.relative_to(tables.root).as_posix()}", path.read_bytes()) for path in files)
    address = store.uri("screen")
    check_input(config, address, write_truth(tmp_path / "truth.csv", truth_of(tables)))
    check_input(config, f"{address}/", None)
    check_input(config, tables.root.as_uri(), None)
    tables.edit("train.csv", "HUVEC-01_1_B03,HUVEC-01,1", "HUVEC-01_1_B03,HUVEC-01,../one")
    store.put("screen/train.csv", (tables.root / "train.csv").read_bytes())
    with pytest.raises(InputError, match=rf"^{address}/train\.csv: .* field plate is '../one'; it names a folder"):
        check_input(config, address, None)
    with pytest.raises(InputError, match=r"screens: holds no file; give the address of the folder"):
        check_input(config, f"{address}s", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "",
            r": images that cannot be read: \S+B02_s1_w3\.png: channel 3 \(actin\) of well B02, site 1: the file is truncated",
        ),
        ("screen.image_size=32", "images of another size than 32x32 pixels .screen.image_size"),
        ("standardise.wells=controls", "no control wells on HUVEC-01 plate 2"),
    ],
)
def test_a_run_is_refused_for_what_check_screen_finds(config_file: Path, tables: TinyScreen, change: str, message: str):
    if change.startswith("standardise"):
        tables.drop_wells("train_controls.csv", "HUVEC-01_2")
    path = tables.image("HUVEC-01", 1, "B02", 1, 3)
    if not change:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=message):
        check_input(RunConfig.load(str(config_file), [change] if change else []), str(tables.root), None)


def test_a_screen_in_a_bucket_needs_credentials(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(InputError, match=r"^--screen s3://lab/screen: object store: AWS_ACCESS_KEY_ID is not set"):
        check_input(config, "s3://lab/screen", None)
    with pytest.raises(InputError, match=r"^--screen ftp://lab/screen: ftp://lab/screen: a screen is a directory or"):
        check_input(config, "ftp://lab/screen", None)


TRUTH = {
    "another encoding": ("id_code,sirna\nHUVEC-03_1_B03,8\n", r"sirna is '8'; .* use the labels of its tables"),
    "labelled well": ("id_code,sirna\nHUVEC-01_1_B03,sirna_7\n", "'HUVEC-01_1_B03'; it is not a treatment well of an"),
    "control well": ("id_code,sirna\nHUVEC-03_1_B02,sirna_7\n", "id_code is 'HUVEC-03_1_B02'; it is not"),
    "well twice": ("id_code,sirna\n" + 2 * "HUVEC-03_1_B03,sirna_7\n", r"line 3 \(HUVEC-03_1_B03\): .* appears twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRUTH)
def test_a_mistake_in_the_truth_is_found_before_training(
    config: RunConfig, tables: TinyScreen, tmp_path: Path, case: str
):
    text, message = TRUTH[case]
    file = tmp_path / "truth.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        check_input(config, str(tables.root), file)
    assert str(caught.value).startswith(f"--truth {file}")
    assert "\n" not in str(caught.value)


def test_initial_weights_that_are_there_or_in_a_store_pass(tables: TinyScreen, tmp_path: Path):
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04")
    save_file({"w": np.zeros(3)}, tmp_path / "w.safetensors")
    for address in ("{}.pt", "{}.safetensors", "file://{}.pt", "s3://bucket/w.pt", "minio://bucket/w.pt"):
        check_input(started_from(tmp_path, address.format(tmp_path / "w")), str(tables.root), None)


EMPTY = ("w.yaml", "zip.safetensors", "empty.safetensors", "empty.pt")
NO_WEIGHTS = [
    ("none.pt", r"there is no file /.*/none\.pt; correct the path, or leave it out to start at random"),
    ("file://{}/none.pt", "there is no file file:///"),
    ("", "there is no file"),
    ("https://example.org/w.pt", "https://example.org/w.pt is neither a file nor an s3:// address"),
    *((name, rf".*{name} holds no weights; give a file of") for name in EMPTY),
]


@pytest.mark.parametrize(("address", "message"), NO_WEIGHTS)
def test_rejects_weights_that_are_missing_or_none(tables: TinyScreen, tmp_path: Path, address: str, message: str):
    (tmp_path / "w.yaml").write_text("name: tiny")
    (tmp_path / "zip.safetensors").write_bytes(b"PK\x03\x04")
    for name in ("empty.safetensors", "empty.pt"):
        (tmp_path / name).touch()
    config = started_from(tmp_path, address.format(tmp_path) if "://" in address else str(tmp_path / address))
    for screen in (None, str(tables.root)):
        with pytest.raises(InputError, match=r"^backbones\[0\]\.weights: " + message):
            check_input(config, screen, None)


def started_from(folder: Path, weights: str) -> RunConfig:
    file = folder / "started.yaml"
    file.write_text(CONFIG.replace("{name: tiny,", f"{{name: tiny, weights: '{weights}',"))
    return RunConfig.load(str(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("folds.known={HUVEC-01: 0, HUVEC-02: 0}", r"folds\.known leaves fold 1 without experiments"),
        ("screen.cell_types=[HUVEC, U2OS]", r"screen\.cell_types: U2OS has no labelled experiment"),
        ("screen.cell_types=[HUVEC, RPE]", r"validates on all labelled experiments of RPE \(RPE-01\)"),
    ],
)
def test_a_screen_that_the_configuration_does_not_fit(config_file: Path, tmp_path: Path, change: str, message: str):
    screen = TinyScreen(tmp_path / "screen", imaged=(), named=True)
    if "RPE" not in change:
        only_huvec(screen)
    with pytest.raises(InputError, match=message):
        check_input(RunConfig.load(str(config_file), [change]), str(screen.root), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("folds.count=16", r"folds\.count is 16, but the screen has 13 labelled experiments that are not held out"),
        ("screen.holdout_experiments=[HUVEC-09]", "HUVEC-09 is not a labelled experiment of the simulated screen"),
        ("simulate.labelled.HeLa=2", r"simulate\.labelled names 'HeLa', which is not in screen\.cell_types"),
        ("simulate.unlabelled.HeLa=2", r"simulate\.unlabelled names 'HeLa', which is not in screen\.cell_types"),
        ("mean_teacher.ratio.HELA=0.5", r"mean_teacher\.ratio names 'HELA', which is not in screen\.cell_types"),
        ("name=python3-x", r"^name.*kfp\.local cannot take a value with 'python3' in it"),
        ("store.prefix=opt/python3.11", r"^store\.prefix.*kfp\.local cannot take a value with 'python3' in it"),
        ("screen.cell_types=[python3]", r"kfp\.local cannot take a value with 'python3' in it"),
    ],
)
def test_rejects_a_configuration_before_a_screen_is_simulated(change: str, message: str):
    with pytest.raises(InputError, match=message):
        check_input(RunConfig.load("demo", [change]), None, None)


def test_a_fold_that_is_not_trained_may_hold_all_experiments_of_a_cell_type():
    changes = ["simulate.labelled={HUVEC: 5, RPE: 1, HEPG2: 2, U2OS: 2}", "screen.holdout_experiments=[]"]
    check_input(RunConfig.load("demo", [*changes, "folds.train=[0]"]), None, None)
    with pytest.raises(InputError, match="fold 1 validates on all labelled experiments of RPE"):
        check_input(RunConfig.load("demo", [*changes, "folds.train=[1]"]), None, None)


def test_folds_of_wells_need_as_many_wells_as_folds_and_one_experiment(config: RunConfig, tables: TinyScreen):
    def dealt(count: int) -> RunConfig:
        folds = config.folds.model_copy(update={"split": "well", "count": count})
        prior = config.prior.model_copy(update={"enabled": False})
        return config.model_copy(update={"folds": folds, "prior": prior})

    tables.drop_wells("train.csv", "HUVEC-02")
    tables.drop_wells("train_controls.csv", "HUVEC-02")
    check_input(dealt(6), str(tables.root), None)
    with pytest.raises(InputError, match=r"folds\.count is 7, but the screen has only 6 labelled treatment wells"):
        check_input(dealt(7), str(tables.root), None)


def test_fused_labels_are_read_before_anything_starts(config: RunConfig, tables: TinyScreen, tmp_path: Path):
    table = tmp_path / "predictions.csv"

    def fused(address: str) -> RunConfig:
        section = config.mean_teacher.model_copy(update={"fused_labels": address})
        return config.model_copy(update={"mean_teacher": section})

    rows = [f"{id_code},{perturbation},0.5" for id_code, perturbation in truth_of(tables).items()]
    table.write_text("\n".join(["id_code,sirna,confidence", *rows]) + "\n")
    check_input(fused(str(table)), str(tables.root), None)
    assert local_files(fused(f"file://{table}")) == {"mean_teacher.fused_labels": table}
    assert local_files(fused("s3://bucket/p.csv")) == {}
    table.write_text("\n".join(["id_code,sirna,confidence", *rows[1:]]) + "\n")
    with pytest.raises(InputError, match=rf"{table}: has no row for 1 unlabelled wells, first HUVEC-03_1_B03"):
        check_input(fused(str(table)), str(tables.root), None)
    with pytest.raises(InputError, match=r"mean_teacher\.fused_labels: there is no file .*none\.csv; correct the path"):
        check_input(fused(str(tmp_path / "none.csv")), str(tables.root), None)


def test_the_published_xception_from_random_weights_is_warned_of():
    (remark,) = weights_remarks(RunConfig.load("rxrx1"))
    assert remark.startswith("backbones.0.weights is null: xception starts from random weights")
    (command,) = re.findall('`python -c "(.+)"`', remark)
    compile(command, "command", "exec")
    swapped = RunConfig.load("rxrx1", ["backbones=[xception_large, xception]"])
    assert "set backbones.1.weights" in weights_remarks(swapped)[0]
    for changes in (
        ["backbones.0.weights=w.pt"],
        ["init_from=old-1"],
        ["backbones=[xception_large]"],
        ["screen.crop=96"],
    ):
        assert weights_remarks(RunConfig.load("rxrx1", changes)) == []
    assert weights_remarks(RunConfig.load("demo")) == []


def test_a_forgotten_screen_is_not_simulated_at_the_real_ones_size():
    with pytest.raises(InputError, match=r"--screen is missing: a simulated screen of this configuration has 198 GB"):
        check_input(RunConfig.load("rxrx1"), None, None)
