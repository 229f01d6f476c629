"""Which wells of a fold train, validate and stay hidden; its plate groups; and the scores that select checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from components.core.config import FoldsConfig, PriorConfig
from components.core.errors import InputError
from components.core.evaluation.metrics import selection_accuracy
from components.core.learning import fold_data
from components.core.learning.fold_data import fold_wells, groups_of_fold, open_fold, validation_score
from components.core.learning.images import Images, open_images
from components.core.learning.step_settings import MeanTeacherSettings, PretrainSettings
from components.core.prior.plate_groups import PlateGroups
from components.core.screen.manifests import dealt_again
from components.core.screen.packed import TREATMENT, SiteTable
from components.core.storage.manifest import Manifest
from tests.components.core.learning.tiny_networks import CPU, RUN, changed
from tests.tiny_screen import TREATMENTS


def experiments(table, wells) -> set[str]:
    return {table.experiments[e] for e in table.experiment_W[wells]}


def test_wells_of_a_fold_of_wells(images: Images):
    """Every second treatment well of labelled experiments is held out; experiments are on both sides."""
    table = images.table
    dealt_W = (table.role_W == TREATMENT) & table.labelled_W
    fold_W = np.where(dealt_W, np.arange(table.wells) % 2, -1).astype(np.int32)
    table = replace(table, fold_W=fold_W)
    for fold in (0, 1):
        wells = fold_wells(table, fold, "training")
        assert np.array_equal(wells.validation, np.flatnonzero(fold_W == fold))
        treatments = wells.training[table.role_W[wells.training] == TREATMENT]
        assert np.array_equal(treatments, np.flatnonzero(fold_W == 1 - fold))
        # All labelled experiments train, so their controls do; those of the unlabelled one only under `all`.
        assert experiments(table, np.setdiff1d(wells.training, treatments)) == {"HUVEC-01", "HUVEC-02", "RPE-01"}
        assert len(fold_wells(table, fold, "all").training) == len(wells.training) + 4
        assert experiments(table, wells.unlabelled) == {"HUVEC-03"}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_hidden_labels_never_train(images: Images, data):
    """Whatever the folds and labels: disjoint roles, labelled training wells only, no treatment of the fold itself."""
    table = images.table
    fold_E = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=4, max_size=4)))
    labelled_E = np.array(data.draw(st.lists(st.booleans(), min_size=4, max_size=4)))
    known_W = np.array(data.draw(st.lists(st.booleans(), min_size=table.wells, max_size=table.wells)))
    drawn = replace(
        table,
        fold_W=fold_E[table.experiment_W].astype(np.int32),
        labelled_W=labelled_E[table.experiment_W],
        # Unlabelled treatments that have labels by mistake must not train either.
        class_W=np.where(known_W, np.maximum(table.class_W, 0), -1).astype(np.int32),
    )
    controls = data.draw(st.sampled_from(["all", "training"]))
    try:
        wells = fold_wells(drawn, 0, controls)
    except InputError:
        treatment_W = (drawn.role_W == TREATMENT) & drawn.labelled_W & (drawn.class_W >= 0)
        assert not (treatment_W & (drawn.fold_W > 0)).any()
        return
    roles = [set(getattr(wells, role).tolist()) for role in ("training", "validation", "unlabelled")]
    assert sum(map(len, roles)) == len(set.union(*roles))
    assert (drawn.class_W[wells.training] >= 0).all()
    treatments = wells.training[drawn.role_W[wells.training] == TREATMENT]
    assert drawn.labelled_W[treatments].all()
    assert (drawn.fold_W[treatments] > 0).all()
    assert (drawn.fold_W[wells.validation] == 0).all()
    assert not drawn.labelled_W[wells.unlabelled].any()
    if controls == "training":
        assert (drawn.fold_W[wells.training] > 0).all()


def test_overlapping_folds_learn_exactly_what_they_do_not_list(screen):
    """RPE-01 is in no list, HUVEC-01 in three."""
    _, manifest = screen
    lists = (("HUVEC-01",), ("HUVEC-02", "HUVEC-01"), ("HUVEC-01",))
    manifest = dealt_again(manifest, FoldsConfig(count=3, validation=lists))
    table = SiteTable.of(manifest)
    for fold, names in enumerate(lists):
        wells = fold_wells(table, fold, "training")
        assert experiments(table, wells.validation) == set(names)
        assert experiments(table, wells.training) == {"HUVEC-01", "HUVEC-02", "RPE-01"} - set(names)
        assert experiments(table, wells.unlabelled) == {"HUVEC-03"}
        groups = groups_of_fold(manifest, fold, PriorConfig())
        assert groups is None or groups.arrangements.keys() == {"HUVEC-01", "HUVEC-02", "RPE-01"} - set(names)
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert again == manifest
    assert "more_folds" not in dealt_again(manifest, FoldsConfig(count=3)).model_dump_json()


def test_rejects_a_cell_type_without_plates(images: Images):
    with pytest.raises(InputError, match=r"cell type 'U2OS' has no plates in the screen; it holds \['HUVEC', 'RPE'\]"):
        fold_wells(images.table, 0, "all", "U2OS")


PRIOR = PriorConfig()


def test_no_groups_without_prior_or_plate_design(screen, capsys):
    manifest = screen[1]
    assert groups_of_fold(manifest, 0, PriorConfig(enabled=False)) is None
    assert capsys.readouterr().out == ""
    # HUVEC-02, the training experiment, with one perturbation in all its wells.
    same = [well.model_copy(update={"perturbation": TREATMENTS[1][0]}) for well in manifest.plates[2].wells]
    plates = [plate.model_copy(update={"wells": tuple(same)}) if plate.experiment == "HUVEC-02" else plate
              for plate in manifest.plates]  # fmt: skip
    assert groups_of_fold(manifest.model_copy(update={"plates": tuple(plates)}), 0, PRIOR) is None
    assert capsys.readouterr().out.startswith("warning: fold 0: training without the plate design (")


def test_no_plate_design_is_learned_if_the_screen_has_none_or_folds_hold_out_wells(screen, capsys):
    manifest = screen[1]
    dealt = manifest.plates[0].model_copy(update={"well_folds": (0, 1, 0, 1, 0)})
    dealt = manifest.model_copy(update={"folds": {}, "plates": (dealt, *manifest.plates[1:])})
    for each in (dealt, manifest.model_copy(update={"no_design": "barcodes"})):
        assert groups_of_fold(each, 0, PRIOR) is None
    assert capsys.readouterr().out == "", "normalize has said it"


def test_scores_compare_with_the_wells_own_labels(screen, images: Images):
    manifest, table = screen[1], images.table
    wells = fold_wells(table, 0, "all").validation
    groups = groups_of_fold(manifest, 0, PRIOR)
    treatments, classes = len(manifest.vocabulary.treatments), len(manifest.vocabulary.classes)
    assert classes > treatments
    right_WK = np.zeros((len(wells), classes), dtype=np.float32)
    right_WK[np.arange(len(wells)), table.class_W[wells]] = 5.0
    right_WK[:, treatments:] = 50.0  # controls are no answer for a treatment well
    # Each well's largest logit is a perturbation of the other group, the right one the next.
    other_group_WK = right_WK.copy()
    in_group = {k: g for g, members in enumerate(groups.members) for k in members.tolist()}
    for row, well in enumerate(wells):
        other = next(k for k in range(treatments) if in_group[k] != in_group[int(table.class_W[well])])
        other_group_WK[row, other] = 9.0

    def score(kind, logits_WK, of=groups):
        return validation_score(table, manifest, wells, of, kind)(logits_WK)

    assert [score(kind, right_WK) for kind in ("raw", "group", "balanced")] == [1.0, 1.0, 1.0]
    assert [score(kind, other_group_WK) for kind in ("raw", "group", "balanced")] == [0.0, 1.0, 1.0]
    assert score("group", other_group_WK, of=None) == 0.0
    assert score("last", other_group_WK) == 1.0, "without selection, the group's accuracy is reported"
    # All wells of a plate favour one perturbation; only balancing makes the smaller differences count.
    leaning_WK = right_WK.copy()
    for members in groups.members:
        leaning_WK[:, members[0]] += 5.5
    assert score("group", leaning_WK) == pytest.approx(1 / 3)
    assert score("balanced", leaning_WK) == 1.0
    # Without a plate design, or with the prior off, perturbations may be on a plate several times, or not at all.
    assert score("balanced", leaning_WK, of=None) == score("raw", leaning_WK) < 1.0


def test_balanced_selection_is_a_softmax_over_the_wells_of_each_plate():
    size = 60
    groups = PlateGroups(("1", "2"), (np.arange(0, 2 * size, 2), np.arange(1, 2 * size, 2)), {})
    rng = np.random.default_rng(3)
    truth_W = np.concatenate([rng.permutation(members) for members in groups.members])
    logits_WK = 1.5 * (rng.standard_normal((2 * size, 2 * size)) + rng.standard_normal(2 * size))
    logits_WK[np.arange(2 * size), truth_W] += 4.5
    plates_W = np.repeat(["1", "2"], size).tolist()

    def score(kind, rows_W, logits_WK=logits_WK):
        plates = [plates_W[n] for n in rows_W]
        return selection_accuracy(kind, logits_WK[rows_W], truth_W[rows_W], ["E-1"] * len(rows_W), plates, groups)

    everyone = np.arange(2 * size)
    right = [
        (members[softmax(logits_WK[rows][:, members], axis=0).argmax(axis=1)] == truth_W[rows]).mean()
        for members, rows in zip(groups.members, (everyone[:size], everyone[size:]), strict=True)
    ]
    assert score("balanced", everyone) == pytest.approx(np.mean(right))
    assert score("balanced", everyone) > score("group", everyone) + 0.05
    # A softmax over single wells would predict the first class of the group for all of them.
    sure_WK = logits_WK + 20.0 * (np.arange(2 * size) == truth_W[:, None])
    assert score("balanced", np.array([0, size]), sure_WK) == 1.0


UNUSUAL = changed(
    RUN,
    screen={"controls": "training"},
    standardise={"domain": "global", "jitter": 0.05},
    batch_norm={"domain": "experiment", "statistics": "controls"},
    augment={"scale": 0.3, "erase_probability": 0.2},
)


def inputs(images: Images) -> torch.Tensor:
    """A few grey levels on every plate, standardised and jittered."""
    plates = len(images.table.plate_name_P)
    pixels = torch.arange(plates * 6 * 4).remainder(251).to(torch.uint8).reshape(plates, 6, 2, 2)
    return images.standardise(pixels, torch.arange(plates), torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("section", "cell_type"), [(PretrainSettings, None), (MeanTeacherSettings, "HUVEC")])
def test_a_step_opens_its_fold_as_configured(section, cell_type, screen, monkeypatch):
    """HUVEC-01 and RPE-01 validate in fold 0, HUVEC-02 trains, HUVEC-03 has no labels."""
    monkeypatch.setattr(fold_data, "pick_device", lambda: CPU)
    store, manifest = screen
    for config, other in ((RUN, UNUSUAL), (UNUSUAL, RUN)):
        data = open_fold(config.section(section), manifest, store, 0, "group", cell_type)
        images, table = data.images, data.images.table
        expected = fold_wells(table, 0, config.screen.controls, cell_type)
        for role in ("training", "validation", "unlabelled"):
            assert np.array_equal(getattr(data.wells, role), getattr(expected, role))
        others = {"RPE-01"} if cell_type is None else set()
        assert experiments(table, data.wells.hidden) == {"HUVEC-01", "HUVEC-03"} | others
        assert experiments(table, data.validation.wells) == {"HUVEC-01"} | others
        as_configured, otherwise = (open_images(c.section(section), manifest, store, CPU) for c in (config, other))
        assert images.batch_norm == config.batch_norm != other.batch_norm
        assert images.augment == config.augment != other.augment
        assert torch.equal(inputs(images), inputs(as_configured))
        assert not torch.allclose(inputs(images), inputs(otherwise), atol=1e-3)
