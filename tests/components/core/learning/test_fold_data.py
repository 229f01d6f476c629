from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.learning.fold_data import fold_wells
from components.core.learning.images import Images
from components.core.screen.site_table import TREATMENT
from tests.components.core.learning.tiny_networks import images_of


def experiments(table, wells) -> set[str]:
    return {table.experiments[e] for e in table.experiment_W[wells]}


@pytest.mark.parametrize("controls", ["all", "training"])
def test_wells_of_a_fold_of_experiments(images: Images, controls):
    table = images.table  # folds {HUVEC-01: 0, HUVEC-02: 1, RPE-01: 0}; HUVEC-03 has no labels
    wells = fold_wells(table, 0, controls)
    treatment_W = table.well_type_W == TREATMENT
    training_treatments = wells.training[treatment_W[wells.training]]
    training_controls = wells.training[~treatment_W[wells.training]]
    assert experiments(table, training_treatments) == {"HUVEC-02"}
    assert len(training_treatments) == 2 * 3
    everywhere = {"HUVEC-01", "HUVEC-02", "HUVEC-03", "RPE-01"}
    assert experiments(table, training_controls) == (everywhere if controls == "all" else {"HUVEC-02"})
    assert len(training_controls) == (16 if controls == "all" else 4)
    assert experiments(table, wells.validation) == {"HUVEC-01", "RPE-01"}
    assert len(wells.validation) == 12
    assert experiments(table, wells.unlabelled) == {"HUVEC-03"}
    assert treatment_W[wells.validation].all()
    assert treatment_W[wells.unlabelled].all()


def test_wells_of_a_fold_of_wells(images: Images):
    """Every second treatment well of labelled experiments is held out; experiments are on both sides."""
    table = images.table
    dealt_W = (table.well_type_W == TREATMENT) & table.labelled_W
    fold_W = np.where(dealt_W, np.arange(table.wells) % 2, -1).astype(np.int32)
    table = replace(table, fold_W=fold_W)
    for fold in (0, 1):
        wells = fold_wells(table, fold, "training")
        assert np.array_equal(wells.validation, np.flatnonzero(fold_W == fold))
        treatments = wells.training[table.well_type_W[wells.training] == TREATMENT]
        assert np.array_equal(treatments, np.flatnonzero(fold_W == 1 - fold))
        # All labelled experiments train, so their controls do; those of the unlabelled one only under `all`.
        assert experiments(table, np.setdiff1d(wells.training, treatments)) == {"HUVEC-01", "HUVEC-02", "RPE-01"}
        assert len(fold_wells(table, fold, "all").training) == len(wells.training) + 4
        assert experiments(table, wells.unlabelled) == {"HUVEC-03"}


def test_a_cell_type_without_experiments_in_the_fold_has_no_validation_wells(images: Images):
    wells = fold_wells(images.table, 1, "all", "RPE")
    assert len(wells.validation) == len(wells.unlabelled) == 0
    assert experiments(images.table, wells.training) == {"RPE-01"}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hidden_labels_never_train(session_images: Images, data):
    """Whatever the folds and labels: disjoint roles, labelled training wells only, no treatment of the fold itself."""
    table = session_images.table
    fold_E = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=4, max_size=4)))
    labelled_E = np.array(data.draw(st.lists(st.booleans(), min_size=4, max_size=4)))
    known_W = np.array(data.draw(st.lists(st.booleans(), min_size=table.wells, max_size=table.wells)))
    changed = replace(
        table,
        fold_W=fold_E[table.experiment_W].astype(np.int32),
        labelled_W=labelled_E[table.experiment_W],
        # Unlabelled treatments given labels by mistake must not train either.
        class_W=np.where(known_W, np.maximum(table.class_W, 0), -1).astype(np.int32),
    )
    controls = data.draw(st.sampled_from(["all", "training"]))
    try:
        wells = fold_wells(changed, 0, controls)
    except InputError:
        treatment_W = (changed.well_type_W == TREATMENT) & changed.labelled_W & (changed.class_W >= 0)
        assert not (treatment_W & (changed.fold_W > 0)).any()
        return
    roles = [set(getattr(wells, role).tolist()) for role in ("training", "validation", "unlabelled")]
    assert sum(map(len, roles)) == len(set.union(*roles))
    assert (changed.class_W[wells.training] >= 0).all()
    treatments = wells.training[changed.well_type_W[wells.training] == TREATMENT]
    assert changed.labelled_W[treatments].all()
    assert (changed.fold_W[treatments] > 0).all()
    assert (changed.fold_W[wells.validation] == 0).all()
    assert not changed.labelled_W[wells.unlabelled].any()
    if controls == "training":
        assert (changed.fold_W[wells.training] > 0).all()


@pytest.fixture(scope="session")
def session_images(screen) -> Images:
    return images_of(screen)


@pytest.mark.parametrize(
    ("cell_type", "message"),
    [
        ("RPE", "fold 0: no labelled treatment wells to train on for cell type RPE; use fewer folds"),
        ("U2OS", r"cell type 'U2OS' has no plates in the screen; it holds \['HUVEC', 'RPE'\]"),
    ],
)
def test_rejects_a_fold_without_training_wells(images: Images, cell_type, message):
    with pytest.raises(InputError, match=message):
        fold_wells(images.table, 0, "all", cell_type)
