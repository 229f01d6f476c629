from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from components.core.config import ComputeConfig, PretrainConfig, PriorConfig
from components.core.errors import InputError
from components.core.learning.fold_data import fold_wells, groups_of_fold, validation_score
from components.core.learning.images import Images
from components.core.learning.loader import SiteLoader
from components.core.learning.supervised import SupervisedTraining
from tests.components.core.learning.tiny_networks import classifier, data_of, images_of
from tests.tiny_screen import TREATMENTS

PRIOR = PriorConfig()


def relabelled(manifest, experiment, change):
    """The manifest with other siRNAs on one experiment's treatment wells."""
    plates = tuple(
        plate
        if plate.experiment != experiment
        else plate.model_copy(
            update={
                "wells": tuple(
                    well.model_copy(update={"sirna": change(well)}) if well.well_type == "treatment" else well
                    for well in plate.wells
                )
            }
        )
        for plate in manifest.plates
    )
    return manifest.model_copy(update={"plates": plates})


@pytest.mark.parametrize("fold", [0, 1])
def test_groups_are_learned_from_the_training_experiments(screen, fold):
    manifest = screen[1]
    groups = groups_of_fold(manifest, fold, PRIOR)
    assert set(groups.arrangements) == {e for e, own in manifest.folds.items() if own != fold}
    names = manifest.vocabulary.treatments
    assert [{names[k] for k in members} for members in groups.members] == [set(TREATMENTS[1]), set(TREATMENTS[2])]


def test_labels_of_the_folds_own_experiments_do_not_reach_the_groups(screen):
    manifest = screen[1]
    wrong = relabelled(manifest, "HUVEC-01", lambda _: manifest.vocabulary.treatments[0])
    honest, blind = groups_of_fold(manifest, 0, PRIOR), groups_of_fold(wrong, 0, PRIOR)
    assert [m.tolist() for m in honest.members] == [m.tolist() for m in blind.members]
    assert groups_of_fold(wrong, 1, PRIOR) is None, "the same labels in training are no plate design"


def test_no_groups_without_prior_or_plate_design(screen, capsys):
    manifest = screen[1]
    assert groups_of_fold(manifest, 0, PriorConfig(enabled=False)) is None
    assert capsys.readouterr().out == ""
    same_everywhere = relabelled(manifest, "HUVEC-02", lambda _: manifest.vocabulary.treatments[0])
    assert groups_of_fold(same_everywhere, 0, PRIOR) is None
    assert capsys.readouterr().out.startswith("warning: fold 0: training without the plate design (")


def test_rejects_folds_of_wells_with_the_plate_design(screen):
    manifest = screen[1]
    dealt = manifest.plates[0].model_copy(update={"well_folds": (0, 1, 0, 1, 0)})
    dealt = manifest.model_copy(update={"folds": {}, "plates": (dealt, *manifest.plates[1:])})
    with pytest.raises(InputError, match=r"by their neighbours' labels; set prior\.enabled to false"):
        groups_of_fold(dealt, 0, PRIOR)
    assert groups_of_fold(dealt, 0, PriorConfig(enabled=False)) is None


def test_scores_compare_with_the_wells_own_labels(screen, images: Images):
    manifest, table = screen[1], images.table
    wells = fold_wells(table, 0, "all").validation
    groups = groups_of_fold(manifest, 0, PRIOR)
    treatments, classes = len(manifest.vocabulary.treatments), len(manifest.vocabulary.classes)
    assert classes > treatments
    right_WK = np.zeros((len(wells), classes), dtype=np.float32)
    right_WK[np.arange(len(wells)), table.class_W[wells]] = 5.0
    right_WK[:, treatments:] = 50.0  # controls are no answer for a treatment well
    # Each well's largest logit is a siRNA of the other group, the right one the next.
    other_group_WK = right_WK.copy()
    in_group = {k: g for g, members in enumerate(groups.members) for k in members.tolist()}
    for row, well in enumerate(wells):
        other = next(k for k in range(treatments) if in_group[k] != in_group[int(table.class_W[well])])
        other_group_WK[row, other] = 9.0

    def score(kind, logits_WK, of=groups):
        return validation_score(table, manifest, wells, of, PRIOR, kind)(logits_WK)

    assert [score(kind, right_WK) for kind in ("raw", "group", "balanced")] == [1.0, 1.0, 1.0]
    assert [score(kind, other_group_WK) for kind in ("raw", "group", "balanced")] == [0.0, 1.0, 1.0]
    assert score("group", other_group_WK, of=None) == 0.0
    assert score("last", other_group_WK) == 1.0, "what is told where nothing is selected: the group's"
    # Every well of a plate leans to one siRNA; only balancing lets the smaller differences speak.
    leaning_WK = right_WK.copy()
    for members in groups.members:
        leaning_WK[:, members[0]] += 5.5
    assert score("group", leaning_WK) == pytest.approx(1 / 3)
    assert score("balanced", leaning_WK) == 1.0


CONFIG = PretrainConfig(epochs=1, batch_size=8, learning_rates=(3e-3,), milestones=())


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.2, 0.3, 1.0), (0.0, 0.0, 0.3)])
def test_data_wait_reports_a_slow_reader(screen, seconds, least, most):
    images = images_of(screen)
    table = replace(images.table, class_W=np.zeros_like(images.table.class_W))

    class Source:
        def read_into(self, _sites: NDArray[np.intp], places: list[NDArray[np.uint8]]) -> None:
            time.sleep(seconds)
            for pixels in places:
                pixels[:] = 0

    fed = replace(images, table=table, loader=SiteLoader(Source(), table.sites, (6, 16, 16), 0, threads=1, ahead=0))
    wells = np.arange(table.wells)
    training = SupervisedTraining(classifier(2), data_of(fed, wells), CONFIG, 1, ComputeConfig())
    training.run()
    (record,) = training.history
    assert least <= record["data_wait"] <= most
