"""Sphering on controls: what it makes of controls and plates, what it does not depend on, and screens without enough controls."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from components.core.config import BackboneConfig, EmbeddingsConfig
from components.core.errors import InputError
from components.core.learning.sphering import check_sphering, sphered
from components.core.screen.wells import Plate, Well
from components.core.storage.arrays import EmbeddedWells

E, PLATES = 5, 8


def screen(controls=("neg",) * 4, seed=0, missing=0.0) -> EmbeddedWells:
    """Plates of controls and ten treatments; embeddings of unequal, correlated numbers with effects of plates and controls.

    `missing` is the share of controls other than the first that a plate lacks.
    """
    rng = np.random.default_rng(seed)
    rows, mixing_EE = [], rng.normal(size=(E, E)) * np.geomspace(1, 30, E)
    of_plate, of_name = rng.normal(size=(PLATES, E)) * 50, {name: rng.normal(size=E) * 20 for name in set(controls)}
    embeddings = []
    for p in range(PLATES):
        names = [name for k, name in enumerate(controls) if k == 0 or rng.random() >= missing]
        for well, name in enumerate([*names, *(f"t{k}" for k in range(10))]):
            role = {"n": "negative_control", "p": "positive_control"}.get(name[0], "treatment")
            rows.append(
                {"id_code": f"X_{p}_{well}", "experiment": "X", "plate": str(p), "role": role, "perturbation": name}
            )
            shift = of_name.get(name, np.zeros(E))
            embeddings.append(rng.normal(size=E) @ mixing_EE + of_plate[p] + shift)
    return EmbeddedWells(pd.DataFrame(rows), np.array(embeddings, np.float32))


def of_controls(embedded: EmbeddedWells) -> pd.DataFrame:
    table = pd.DataFrame(embedded.embedding_WE.astype(np.float64)).assign(plate=embedded.wells["plate"])
    return table[embedded.wells["role"] == "negative_control"]


def test_negative_controls_have_identity_covariance_within_plates_around_zero():
    table = of_controls(sphered(screen()))
    assert table.groupby("plate").mean().abs().to_numpy().max() < 1e-4
    x_NE = table.drop(columns="plate").to_numpy()
    np.testing.assert_allclose(x_NE.T @ x_NE / (len(x_NE) - PLATES), np.eye(E), atol=1e-3)


CONTROLS = ("neg", "neg", "pos1", "pos2", "pos3", "pos3")


def test_several_controls_count_by_their_variation_not_by_their_effect():
    """Against dummy variables and a pseudo-inverse; the negative controls' effect becomes 0."""
    given = screen(CONTROLS, missing=0.3)
    found = sphered(given)
    controls = given.wells["role"] != "treatment"
    dummies = pd.get_dummies(given.wells.loc[controls, ["plate", "perturbation"]]).to_numpy(float)
    residual = np.eye(len(dummies)) - dummies @ np.linalg.pinv(dummies)
    left_NE = residual @ found.embedding_WE[controls].astype(np.float64)
    np.testing.assert_allclose(left_NE.T @ left_NE / np.trace(residual), np.eye(E), atol=1e-3)
    fitted = np.linalg.pinv(dummies) @ found.embedding_WE[controls]
    assert np.abs(fitted[:PLATES] + fitted[PLATES]).max() < 1e-3, (
        "plates' effects are gone, and so is the first control's"
    )
    assert np.abs(fitted[PLATES + 1 :] - fitted[PLATES]).max() > 1


@pytest.mark.parametrize("controls", [("neg",) * 4, CONTROLS])
def test_distances_do_not_change_with_a_linear_map_or_an_offset_of_a_plate(controls):
    given = screen(controls, missing=0.3)
    rng = np.random.default_rng(7)
    plate_W = given.wells["plate"].astype(int).to_numpy()
    mapped_WE = given.embedding_WE @ rng.normal(size=(E, E)) + rng.normal(size=(PLATES, E))[plate_W] * 30
    mapped = sphered(replace(given, embedding_WE=mapped_WE.astype(np.float32))).embedding_WE
    own = sphered(given).embedding_WE
    np.testing.assert_allclose(mapped @ mapped.T, own @ own.T, atol=0.02 * np.abs(own @ own.T).max())
    assert np.abs(own @ own.T - given.embedding_WE @ given.embedding_WE.T).max() > 1


def test_labels_of_treatments_are_not_read():
    given = screen(CONTROLS)
    labels = given.wells["perturbation"].where(given.wells["role"] != "treatment")
    hidden = replace(given, wells=given.wells.assign(perturbation=labels))
    assert np.array_equal(sphered(hidden).embedding_WE, sphered(given).embedding_WE)


def test_a_direction_without_variation_of_controls_becomes_zero():
    given = screen()
    given.embedding_WE[:, 2] = 0.25
    found = sphered(given)
    assert np.abs(found.embedding_WE[:, 2]).max() < 1e-6
    assert np.linalg.matrix_rank(found.embedding_WE, tol=1e-3) == E - 1


def test_shrinkage_goes_from_the_covariance_to_its_mean_variance():
    given = screen(CONTROLS)
    np.testing.assert_allclose(sphered(given, 1e-9).embedding_WE, sphered(given).embedding_WE, rtol=1e-3, atol=1e-3)
    # At 1 there is one factor for all directions, so that distances within a plate keep their ratios.
    before, after = (
        np.linalg.norm(np.diff(x[:6], axis=0), axis=1) for x in (given.embedding_WE, sphered(given, 1.0).embedding_WE)
    )
    assert np.ptp(after / before) < 1e-4 * (after / before).mean()
    controls = of_controls(sphered(given, 0.5)).drop(columns="plate")
    assert np.linalg.eigvalsh(controls.cov())[0] < 0.5, "less than 1 where controls vary less than on average"


def plates_of(given: EmbeddedWells) -> list[Plate]:
    """The tables that a run begins with."""
    return [
        Plate(
            "X",
            plate,
            "HUVEC",
            True,
            False,
            tuple(Well(w.id_code, "", w.role, w.perturbation, ()) for w in own.itertuples()),
        )
        for plate, own in given.wells.groupby("plate", sort=False)
    ]


def fault_of(given: EmbeddedWells, shrinkage: float = 0.0) -> str | None:
    """The message, which is the same before a run as from its embeddings."""
    messages = []
    backbone = BackboneConfig(name="b", kind="plain", stages=((3,), (E,)))
    config = EmbeddingsConfig(sphering="controls", shrinkage=shrinkage)
    for work in (lambda: check_sphering(plates_of(given), config, [backbone]), lambda: sphered(given, shrinkage)):
        try:
            work()
            messages.append(None)
        except InputError as error:
            messages.append(str(error).removeprefix("HUVEC: "))
    assert messages[0] == messages[1]
    return messages[0]


def only(given: EmbeddedWells, keep: pd.Series) -> EmbeddedWells:
    return EmbeddedWells(given.wells[keep].reset_index(drop=True), given.embedding_WE[keep])


def test_screens_without_enough_controls_are_refused_before_they_train():
    given = screen()
    assert fault_of(given) is None
    wells = given.wells
    bare = only(given, ~wells["plate"].isin(["2", "5"]) | (wells["role"] == "treatment"))
    message = "no control wells on X plate 2, X plate 5, which embeddings.sphering controls needs: mark"
    assert fault_of(bare, 0.1).startswith(message)
    first = (wells["role"] == "treatment") | wells["id_code"].str.endswith("_0")
    few = only(given, first | wells["id_code"].isin(["X_0_1", "X_3_2"]))
    assert "10 control wells leave 2 degrees of freedom" in fault_of(few)
    assert "the embedding has 5 numbers; raise embeddings.shrinkage above 0" in fault_of(few)
    assert fault_of(few, 0.1) is None
    message = "none is left to measure their variation; set embeddings.sphering to none"
    assert message in fault_of(only(given, first), 0.1)
    check_sphering(plates_of(bare), EmbeddingsConfig(), [])
    timm = [BackboneConfig(name="resnet", kind="timm", model="resnet50")]
    with pytest.raises(InputError, match=r"^embeddings\.shrinkage is 0, .* those of resnet, .* raise it"):
        check_sphering(plates_of(given), EmbeddingsConfig(sphering="controls"), timm)
    check_sphering(plates_of(given), EmbeddingsConfig(sphering="controls", shrinkage=0.1), timm)
