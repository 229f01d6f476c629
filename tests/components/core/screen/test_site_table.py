"""The flat tables against loops over the manifest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.learning.fold_data import fold_wells
from components.core.screen.packed import ROLES, SiteTable


def test_the_arrays_agree_with_the_manifest(screen):
    _, manifest = screen
    table = SiteTable.of(manifest)
    w = s = 0
    for p, plate in enumerate(manifest.plates):
        assert table.experiments[table.experiment_P[p]] == plate.experiment
        assert table.plate_name_P[p] == plate.plate
        for well in plate.wells:
            label = None if table.class_W[w] < 0 else manifest.vocabulary.classes[table.class_W[w]]
            assert (table.id_code_W[w], table.well_W[w], label) == (well.id_code, well.well, well.perturbation)
            assert ROLES[table.role_W[w]] == well.role
            assert table.plate_W[w] == p
            assert table.experiment_W[w] == table.experiment_P[p]
            assert table.cell_types[table.cell_type_W[w]] == plate.cell_type
            assert table.fold_W[w] == manifest.folds.get(plate.experiment, -1)
            assert table.labelled_W[w] == plate.labelled
            assert table.first_site_W[w] == s
            for site in well.sites:
                assert (table.well_S[s], table.site_S[s], table.size_S[s]) == (w, site.site, site.size)
                assert (table.key_S[s], table.sha256_S[s]) == (f"{plate.prefix}/{site.key}", site.sha256)
                s += 1
            w += 1
    assert (table.wells, table.sites, table.first_site_W[-1]) == (w, s, s)
    assert set(table.fold_W[~table.labelled_W]) == {-1}
    assert (table.class_W < 0).any()


def test_a_treatment_well_without_label_is_unlabelled_and_in_no_fold_in_a_labelled_experiment_too(screen):
    _, manifest = screen
    plate = manifest.plates[0]
    assert (plate.experiment, plate.labelled, plate.wells[1].role) == ("HUVEC-01", True, "treatment")
    wells = (plate.wells[0], plate.wells[1].model_copy(update={"perturbation": None}), *plate.wells[2:])
    bare = plate.model_copy(update={"wells": wells})
    table = SiteTable.of(manifest.model_copy(update={"plates": (bare, *manifest.plates[1:])}))
    fold = manifest.folds["HUVEC-01"]
    assert table.labelled_W[:5].tolist() == [True, False, True, True, True]
    assert table.fold_W[:5].tolist() == [fold, -1, fold, fold, fold]
    for each in (0, 1):
        found = fold_wells(table, each, "all")
        assert 1 in found.unlabelled
        assert not {1} & {*found.training.tolist(), *found.validation.tolist()}
        # The other wells are where they were.
        usual = fold_wells(SiteTable.of(manifest), each, "all")
        for name in ("training", "validation"):
            assert [w for w in getattr(usual, name) if w != 1] == getattr(found, name).tolist()


def test_folds_of_wells_override_folds_of_experiments(screen):
    _, manifest = screen
    dealt = manifest.plates[0].model_copy(update={"well_folds": (1, 0, -1, 1, -1)})
    table = SiteTable.of(manifest.model_copy(update={"plates": (dealt, *manifest.plates[1:])}))
    assert table.fold_W[:5].tolist() == [1, 0, -1, 1, -1]
    assert table.fold_W[5:].tolist() == SiteTable.of(manifest).fold_W[5:].tolist()


@given(wells=st.lists(st.integers(0, 39)))
def test_sites_of_wells_agree_with_a_loop(screen, wells):
    table = SiteTable.of(screen[1])
    expected = [s for w in wells for s in range(table.first_site_W[w], table.first_site_W[w + 1])]
    assert table.sites_of(np.array(wells, np.int64)).tolist() == expected


def test_rejects_a_label_beyond_the_vocabulary(screen):
    _, manifest = screen
    vocabulary = manifest.vocabulary.model_copy(update={"treatments": ()})
    with pytest.raises(ValueError, match=r"well HUVEC-01_1_B03: label 'sirna_7' is not in the manifest's vocabulary"):
        SiteTable.of(manifest.model_copy(update={"vocabulary": vocabulary}))
