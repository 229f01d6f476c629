"""Logits and embeddings of a fold, against the plain sum over sites and views."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from components.core.config import EmbeddingsConfig
from components.core.learning.fold_data import fold_wells
from components.core.learning.prediction import fold_meta, held_out_images, predict_fold, sphering
from components.core.learning.sphering import sphered
from components.core.learning.step_settings import InferSettings
from components.core.storage.manifest import Manifest
from components.normalize.step import run as normalize
from tests.components.core.learning.tiny_networks import CPU, RUN, SLIM, SMALL, classifier, images_of
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen

SETTINGS = RUN.section(InferSettings).model_copy(update={"embeddings": EmbeddingsConfig(views=4)})


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    """Store, screen and held-out experiment HUVEC-02."""
    folder, store = tmp_path_factory.mktemp("packed"), MemoryStore()
    TinyScreen(folder / "screen")
    screen = CONFIG.screen.model_copy(update={"holdout_experiments": ("HUVEC-02",)})
    config = CONFIG.model_copy(update={"screen": screen})
    normalize(config, folder / "screen", store, folder / "s.json", folder / "h.json", folder / "l.csv")
    return store, Manifest.read(folder / "s.json"), Manifest.read(folder / "h.json")


def networks(manifest):
    classes = len(manifest.vocabulary.classes)
    return {b.name: classifier(classes, seed, b) for seed, b in enumerate((SMALL, SLIM))}


def predicted(screens, cell_type="HUVEC", fold=1, settings=SETTINGS, nets=None):
    store, screen, holdout = screens
    images = images_of((store, screen))
    images = replace(images, batch_norm=settings.batch_norm)
    wells = fold_wells(images.table, fold, "all", cell_type)
    held_out = held_out_images(holdout, screen, cell_type, store, settings, CPU)
    return predict_fold(nets or networks(screen), screen, images, wells, held_out, cell_type, settings)


def plain_embedding(network, images, well) -> np.ndarray:
    """A well's mean over sites and the eight turned and mirrored images, one image at a time."""
    table, total, seen = images.table, torch.zeros(network.embedding_size), 0
    network.eval()
    with torch.no_grad():
        for site in range(table.first_site_W[well], table.first_site_W[well + 1]):
            ((_, x),) = images.batches([np.array([site])])
            for view in range(8):
                turned = torch.rot90(x, view % 4, (2, 3))
                total += network.backbone(turned if view < 4 else turned.flip(3))[0]
                seen += 1
    return (total / seen).numpy()


def test_every_well_of_the_cell_type_is_embedded_with_its_metadata(screens):
    _, screen, _ = screens
    found = predicted(screens)
    assert set(found.embeddings) == {"small", "slim"}
    for embedded in found.embeddings.values():
        wells = embedded.wells
        perturbations = [
            perturbation if isinstance(perturbation, str) else None for perturbation in wells["perturbation"]
        ]
        known = dict(zip(wells["id_code"], zip(wells["use"], wells["role"], perturbations, strict=True), strict=True))
        assert len(known) == len(wells) == 3 * 2 * 5
        assert (wells["experiment"] + "_" + wells["plate"].astype(str) + "_" + wells["well"] == wells["id_code"]).all()
        # With HUVEC-02 held out the folds are HUVEC-01: 0, RPE-01: 1, so that fold 1 trains on HUVEC-01.
        assert screen.folds["HUVEC-01"] == 0
        assert known["HUVEC-01_1_B03"] == ("training", "treatment", "sirna_7")
        assert known["HUVEC-03_2_C02"] == ("unlabelled", "treatment", None)
        assert known["HUVEC-02_1_B04"] == ("holdout", "treatment", None)
        assert {perturbation for role, _, perturbation in known.values() if role in ("unlabelled", "holdout")} == {None}
        for experiment in ("HUVEC-01", "HUVEC-02", "HUVEC-03"):
            assert known[f"{experiment}_2_B02"] == ("control", "negative_control", "UNTREATED")
            assert known[f"{experiment}_1_C03"] == ("control", "positive_control", "sirna_5")
    assert found.embeddings["small"].embedding_WE.shape == (30, 16)
    assert found.embeddings["slim"].embedding_WE.shape == (30, 12)
    validating = predicted(screens, fold=0, cell_type="RPE").embeddings["slim"]
    assert set(validating.wells["experiment"]) == {"RPE-01"}


def test_an_embedding_is_the_backbones_mean_output_and_logits_are_the_networks_mean(screens):
    store, screen, holdout = screens
    nets = networks(screen)
    settings = SETTINGS.model_copy(update={"embeddings": EmbeddingsConfig(views=8)})
    found = predicted(screens, settings=settings, nets=nets)
    images, held_out = images_of((store, screen)), images_of((store, holdout))
    for name, wells in found.embeddings.items():
        for source, id_code in ((images, "HUVEC-01_1_B03"), (images, "HUVEC-03_2_B02"), (held_out, "HUVEC-02_2_C02")):
            (well,) = np.flatnonzero(source.table.id_code_W == id_code)
            row = wells.wells["id_code"].tolist().index(id_code)
            expected = plain_embedding(nets[name], source, well)
            np.testing.assert_allclose(wells.embedding_WE[row], expected, rtol=1e-4, atol=1e-5)
    each = [predicted(screens, nets={name: network}) for name, network in nets.items()]
    for role, wells in found.logits.items():
        mean_WK = np.mean([one.logits[role].logits_WK for one in each], axis=0)
        np.testing.assert_allclose(wells.logits_WK, mean_WK, rtol=1e-5, atol=1e-6)
    assert found.logits["holdout"].ids_W == tuple(f"HUVEC-02_{p}_{w}" for p in (1, 2) for w in ("B03", "B04", "C02"))


def test_embeddings_are_sphered_in_the_files(screens, tmp_path):
    found = predicted(screens)
    meta = fold_meta("HUVEC", 1, False, [])
    for kind in ("none", "controls"):
        config = EmbeddingsConfig(views=4, sphering=kind, shrinkage=0.1 if kind == "controls" else 0.0)
        settings = SETTINGS.model_copy(update={"embeddings": config})
        found.write(tmp_path / "logits", tmp_path / "none", meta, settings, "student")
        if change := sphering(settings):
            change.work(tmp_path / "none", tmp_path / kind)
        table = pq.read_table(tmp_path / kind / "slim" / "HUVEC" / "fold_1.parquet")
        own = found.embeddings["slim"]
        expected = sphered(own, 0.1) if kind == "controls" else own
        assert np.array_equal(np.stack(table["embedding"].to_pylist()).astype(np.float32), expected.embedding_WE)
        assert table.schema.metadata.get(b"cellsignal.sphering") == (b"controls" if kind == "controls" else None)
