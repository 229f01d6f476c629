"""infer predicts new plates with a published model's networks as the training run predicted them, and rejects bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from components.core.errors import InputError
from components.core.learning.fold_data import fold_wells
from components.core.learning.images import open_images
from components.core.learning.prediction import held_out_images, predict_fold
from components.core.learning.step_settings import InferSettings
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.arrays import WellLogits, read_logits
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.infer.step import main as infer
from components.normalize.step import main as normalize
from tests.components.core.learning.tiny_networks import CPU
from tests.components.core.registry.finished_run import KEY, FinishedRun, Kind
from tests.components.core.registry.test_published_models import everything
from tests.tiny_screen import TinyScreen

NEW = ("HUVEC-03", "HUVEC-04")
"""Unlabelled in the training run's screen, and held out of it."""


class Prediction:
    """A published run, and new plates that are packed into its store."""

    def __init__(self, folder: Path, kind: Kind = "pseudo_label", **config: Any) -> None:
        (folder / "store").mkdir()
        self.folder, self.store = folder, ObjectStore(folder / "store")
        self.run = FinishedRun(folder, self.store, kind, **config)
        self.model: ModelManifest = publish(self.store, KEY).model
        self.address = self.store.uri(f"models/{self.model.fingerprint}")
        self.source = folder / "screen"
        self.reference, self.plates = folder / "reference.json", folder / "plates.json"
        self.config = self.run.config
        self.settings = self.config.section(InferSettings)

    def normalize(self, experiments: tuple[str, ...] = NEW, any_cell_type: bool = False) -> Manifest:
        chosen = json.dumps(list(experiments))
        outputs = (str(self.reference), str(self.plates), str(self.folder / "labels.csv"))
        normalize(self.run.config.model_dump_json(), str(self.source), *outputs, self.address, chosen, any_cell_type)
        return Manifest.read(self.plates)

    def infer(self, fold: int = 0, cell_type: str = "HUVEC", name: str = "out") -> Path:
        out = self.folder / name
        infer(
            str(self.reference), str(self.plates), (), fold, cell_type, str(out / "logits"), str(out / "embeddings"),
            self.config.model_dump_json(),
        )  # fmt: skip
        return out

    def expected(self, fold: int, cell_type: str = "HUVEC") -> dict[str, WellLogits]:
        """The training run's own predictions, by role, with rebuilt networks."""
        role = {"pretrain": "pretrained"}.get(self.run.kind, "student")
        networks = {
            backbone.name: self.run.network(self.run.seed(fold, cell_type, n, role), n)
            for n, backbone in enumerate(self.run.config.backbones)
        }
        screen, holdout = self.run.screen, self.run.holdout
        images = open_images(self.settings, screen, self.store, CPU)
        wells = fold_wells(images.table, fold, "all", cell_type)
        held_out = held_out_images(holdout, screen, cell_type, self.store, self.settings, CPU)
        return dict(predict_fold(networks, screen, images, wells, held_out, cell_type, self.settings).logits)


KINDS = [
    ("pseudo_label", {}),
    ("pretrain", {"standardise": {"domain": "global"}}),
    ("pretrain", {"head": {"cell_types": True}}),
    ("pseudo_label", {"standardise": {"domain": "experiment"}, "batch_norm": {"domain": "plate"}}),
]


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_new_wells_get_the_logits_of_the_training_run(tmp_path: Path, kind: Kind, config: dict[str, Any]) -> None:
    prediction = Prediction(tmp_path, kind, **config)
    plates = prediction.normalize()
    assert {well.perturbation for plate in plates.plates for well in plate.wells} == {None}
    for fold in (0, 1):
        found = read_logits(prediction.infer(fold, name=f"out{fold}") / "logits")
        assert found.meta["fold"] == fold
        assert found.wells["oof"].ids_W == found.wells["unlabelled"].ids_W == ()
        new, own = found.wells["holdout"], prediction.expected(fold)
        assert len(new.ids_W) == 12
        for role in ("unlabelled", "holdout"):
            assert len(own[role].ids_W) == 6
            assert new.take(own[role].ids_W) == pytest.approx(own[role].logits_WK, abs=1e-5)


def test_embeds_all_wells_only_reads_the_registry_and_reuses_the_output_of_the_same_plates_and_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction = Prediction(tmp_path)
    before = everything(prediction.store)
    prediction.normalize(("HUVEC-04",))
    out = prediction.infer(name="first")
    after = everything(prediction.store)
    changed = {key.split("/")[0] for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    # The training run packed the same plates, which are found by the digests of their files.
    assert changed == {"finished", "fingerprints"}
    for backbone in prediction.model.backbones:
        table = pq.read_table(out / "embeddings" / backbone / "HUVEC" / "fold_0.parquet")
        assert len(table) == 10
        assert set(table["use"].to_pylist()) == {"holdout", "control"}
        assert set(table["sirna"].to_pylist()) == {None}
    capsys.readouterr()
    again = prediction.infer(name="again")
    assert "predicting" not in capsys.readouterr().out
    assert np.array_equal(*(read_logits(path / "logits").wells["holdout"].logits_WK for path in (out, again)))
    prediction.infer(1, name="other fold")
    assert "predicting" in capsys.readouterr().out
    prediction.normalize()
    prediction.infer(name="other plates")
    assert "predicting" in capsys.readouterr().out


def test_rejects_an_unknown_cell_type_unless_networks_learned_all(tmp_path: Path) -> None:
    for name in ("pretrain", "pseudo_label", "input"):
        (tmp_path / name).mkdir()
        takes = {"kind": "pretrain", "head": {"cell_types": True}} if name == "input" else {"kind": name}
        prediction = Prediction(tmp_path / name, **takes)  # type: ignore[arg-type]
        tables = TinyScreen(tmp_path / name / "other", imaged=("HUVEC-03",))
        for path in (tables.root / "test.csv", tables.root / "test_controls.csv"):
            path.write_text(path.read_text().replace("HUVEC-03", "K562-03"))
        (tables.root / "test" / "HUVEC-03").rename(tables.root / "test" / "K562-03")
        prediction.source = tables.root
        lead = f"other: cell type K562, but model {prediction.model.short} knows only HUVEC, RPE"
        if name == "input":
            with pytest.raises(
                InputError, match=rf"{lead}, which its networks take as input \(head\.cell_types\); leave"
            ):
                prediction.normalize(("K562-03",), any_cell_type=True)
            continue
        with pytest.raises(InputError, match=f"{lead}; leave its experiments out, (train|or)"):
            prediction.normalize(("K562-03",))
        if name == "pseudo_label":
            with pytest.raises(InputError, match=lead + r", with networks for each of them but none for all; leave"):
                prediction.normalize(("K562-03",), any_cell_type=True)
        else:
            prediction.normalize(("K562-03",), any_cell_type=True)
            found = read_logits(prediction.infer(cell_type="K562") / "logits").wells["holdout"]
            # The same images and the same networks, under another name.
            own = prediction.expected(0)["unlabelled"]
            assert found.ids_W == tuple(id_code.replace("HUVEC", "K562") for id_code in own.ids_W)
            assert found.logits_WK == pytest.approx(own.logits_WK, abs=1e-5)


def test_warns_of_trained_experiments_and_rejects_images_of_another_size(tmp_path: Path) -> None:
    prediction = Prediction(tmp_path)
    warnings = prediction.normalize(("HUVEC-01", "HUVEC-03", "HUVEC-04")).warnings
    assert any(each.startswith("the model learned the labels of HUVEC-01; if") for each in warnings)
    assert any(each.startswith("the model was trained on images of HUVEC-03; if") for each in warnings)
    assert not any("HUVEC-04" in each for each in warnings)
    before = prediction.plates.read_bytes()
    image = prediction.source / "test" / "HUVEC-03" / "Plate1" / "B02_s1_w1.png"
    cv2.imwrite(str(image), np.zeros((32, 32), np.uint8))
    with pytest.raises(InputError, match=r"B02_s1_w1\.png: .*expected 16x16 pixels, found 32x32"):
        prediction.normalize()
    assert prediction.plates.read_bytes() == before
