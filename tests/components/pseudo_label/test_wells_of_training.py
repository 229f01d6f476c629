"""pseudo_label up to its training: which wells are labelled, unlabelled and validated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.core.config import ScreenConfig
from components.pseudo_label import step
from tests.components.pseudo_label.small_design import IMAGES, PAIRS, SCREEN, controls_of, settings, wells_of


class Reached(Exception):  # noqa: N818
    """Training would begin."""


@pytest.fixture
def given_to_training(monkeypatch):
    """Runs the step on fold 0 of HUVEC until it trains; returns what training is given."""

    def until_training(controls: str) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def train_epochs(**arguments: Any) -> None:
            given.update(arguments)
            raise Reached

        monkeypatch.setattr(step, "check_finetuned", lambda *_: None)
        monkeypatch.setattr(step, "load_pairs", lambda *_: (PAIRS, []))
        monkeypatch.setattr(step, "configured_images", lambda *_, **__: IMAGES)
        monkeypatch.setattr(step, "train_epochs", train_epochs)
        chosen = settings().model_copy(update={"screen": ScreenConfig(cell_types=("HUVEC", "RPE"), controls=controls)})
        nowhere: Any = Path("nowhere")
        with pytest.raises(Reached):
            step.run(
                settings=chosen, store=nowhere, screen=SCREEN, holdout=SCREEN, base=nowhere, fold=0, cell_type="HUVEC",
                weights=nowhere, logits=nowhere, embeddings=nowhere,
            )  # fmt: skip
        return given

    return until_training


def test_validation_wells_are_unlabelled_wells_and_pseudo_labelled_like_the_others(given_to_training):
    given = given_to_training("all")
    hidden = np.sort(wells_of("HUVEC-01", "HUVEC-04"))
    assert np.array_equal(np.sort(given["wells"].unlabelled), hidden)
    assert np.array_equal(np.sort(given["refresh"].wells), hidden)
    assert np.array_equal(given["validation"], wells_of("HUVEC-01"))
    assert not np.isin(given["wells"].labelled, hidden).any()


@pytest.mark.parametrize(
    ("controls", "experiments"),
    [("all", ("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04")), ("training", ("HUVEC-02", "HUVEC-03"))],
)
def test_controls_of_the_configured_experiments_are_labelled(given_to_training, controls, experiments):
    expected = np.union1d(wells_of("HUVEC-02", "HUVEC-03"), controls_of(*experiments))
    assert np.array_equal(np.sort(given_to_training(controls)["wells"].labelled), expected)
