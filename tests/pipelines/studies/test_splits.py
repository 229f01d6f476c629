"""Wells that a protocol holds out: the folds that normalize deals, without packing the screen again."""

from __future__ import annotations

import pytest

from components.core.config import FoldsConfig, RunConfig
from components.core.errors import InputError
from components.core.screen.manifests import dealt_again
from components.core.storage.manifest import Manifest
from components.normalize.step import run
from pipelines.studies import splits
from pipelines.studies.splits import held_out_experiments, held_out_wells, protocol_config, split_screen
from tests.tiny_screen import CONFIG, LABELLED, UNLABELLED, MemoryStore, TinyScreen


@pytest.fixture(scope="module")
def normalised(tmp_path_factory):
    """The tiny screen's manifest under any folds, with HUVEC-04 held out of it."""
    folder = tmp_path_factory.mktemp("screen")
    tiny, store = TinyScreen(folder / "screen", (*LABELLED, *UNLABELLED, "HUVEC-04"), ["HUVEC-04"]), MemoryStore()
    screen = CONFIG.screen.model_copy(update={"holdout_experiments": ("HUVEC-04",)})

    def normalise(folds: FoldsConfig) -> Manifest:
        config = CONFIG.model_copy(update={"folds": folds, "screen": screen})
        run(config, tiny.root, store, folder / "screen.json", folder / "holdout.json", folder / "labels.csv")
        return Manifest.read(folder / "screen.json")

    return normalise


@pytest.mark.parametrize(
    "folds",
    [
        FoldsConfig(count=2),
        FoldsConfig(count=3, seed=4),
        FoldsConfig(count=2, known={"HUVEC-01": 1, "RPE-01": 0}),
        FoldsConfig(count=2, split="well"),
        FoldsConfig(count=5, split="well", seed=3),
    ],
)
def test_folds_dealt_again_are_those_that_normalize_deals(normalised, folds):
    for before in (FoldsConfig(count=2), FoldsConfig(count=2, split="well", seed=9)):
        assert dealt_again(normalised(before), folds).digest() == normalised(folds).digest()


def test_whole_experiments_are_held_out_and_unlabelled_treatments_are_left_out(normalised):
    whole = normalised(FoldsConfig(count=2))
    split, fold = split_screen(whole, FoldsConfig(count=2, seed=1))
    experiments = held_out_experiments(split, fold)
    wells = held_out_wells(split, fold)
    assert 1 <= len(experiments) <= 2
    assert {id_code.split("_")[0] for _, id_code, _ in wells} == set(experiments)
    assert len(wells) == 6 * len(experiments)
    unlabelled = [plate for plate in split.plates if not plate.labelled]
    assert {well.role for plate in unlabelled for well in plate.wells} == {"positive_control", "negative_control"}
    assert [p.wells for p in split.plates if p.labelled] == [p.wells for p in whole.plates if p.labelled]


def test_the_held_out_fold_is_the_first_with_the_most_cell_types(normalised):
    whole = normalised(FoldsConfig(count=2))
    for seed in range(8):
        split, fold = split_screen(whole, FoldsConfig(count=3, seed=seed))
        types = [len(splits.held_out_types(split, f)) for f in range(3)]
        assert fold == types.index(max(types))


def test_random_wells_are_held_out_of_every_experiment(normalised):
    split, fold = split_screen(normalised(FoldsConfig(count=2)), FoldsConfig(count=3, split="well", seed=1))
    wells = held_out_wells(split, fold)
    assert held_out_experiments(split, fold) == []
    of_experiment = [id_code.split("_")[0] for _, id_code, _ in wells]
    assert {name: of_experiment.count(name) for name in of_experiment} == {"HUVEC-01": 2, "HUVEC-02": 2, "RPE-01": 2}
    labels = {well.id_code: well.perturbation for plate in split.plates for well in plate.wells}
    assert all(labels[id_code] == perturbation for _, id_code, perturbation in wells)


def test_nothing_in_a_protocols_training_uses_the_scored_wells():
    config = RunConfig.load("demo", ["folds.known={HUVEC-01: 1}"])
    for protocol, split in (("batch", "experiment"), ("random", "well")):
        own = protocol_config(config, protocol, 7)
        assert (own.folds.split, own.folds.seed, own.folds.known, own.folds.count) == (split, 7, {}, config.folds.count)
        assert own.pretrain.selection == "last"
        assert not any(section.enabled for section in (own.mean_teacher, own.prior, own.embeddings))
        assert own.backbones == config.backbones[:1]
        assert RunConfig.model_validate(own.model_dump()) == own, "a configuration that could be loaded"
        assert own.pretrain.epochs == config.pretrain.epochs
        assert (own.standardise, own.head) == (config.standardise, config.head)
    assert protocol_config(config, "batch", 1, backbones=2).backbones == config.backbones


def test_a_protocol_needs_a_fold_to_hold_out():
    with pytest.raises(InputError, match=r"folds\.count is 1"):
        protocol_config(RunConfig.load("demo", ["folds.count=1"]), "batch", 1)
