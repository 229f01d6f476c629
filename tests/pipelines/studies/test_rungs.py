"""Each rung is one change of configuration."""

import pytest

from components.core.config import RunConfig, differences
from components.core.errors import InputError
from pipelines.studies.rungs import rungs


@pytest.fixture(scope="module")
def full():
    return RunConfig.load("growth")


@pytest.fixture(scope="module")
def ladder(full):
    return {rung.name: rung for rung in rungs(full)}


def test_each_rung_changes_what_its_name_says_and_nothing_else(ladder):
    assert {name: set(rung.difference) for name, rung in ladder.items()} == {
        "baseline": set(),
        "experiment": {"standardise.domain"},
        "plate": {"standardise.domain"},
        "arcface": {"head.kind"},
        "mean_teacher": {"mean_teacher.enabled", "mean_teacher.pseudo_labels"},
        "dual_pseudo_labels": {"backbones", "mean_teacher.pseudo_labels"},
        "folds": {"folds.train"},
        "adabn_experiment": {"batch_norm.domain"},
        "adabn_plate": {"batch_norm.domain"},
        "adabn_arcface": {"head.kind"},
        "adabn_mean_teacher": {"mean_teacher.enabled", "mean_teacher.pseudo_labels"},
        "both_arcface": {"batch_norm.domain"},
        "pseudo_labels": {"mean_teacher.pseudo_labels"},
    }
    assert ladder["plate"].difference["standardise.domain"] == ("experiment", "plate")


def test_asides_and_the_adabn_route_differ_from_the_rung_that_they_start_from(ladder):
    starts = {"adabn_experiment": "baseline", "both_arcface": "arcface", "pseudo_labels": "mean_teacher"}
    for after, before in starts.items():
        dumped = [ladder[name].config.model_dump(mode="json") for name in (before, after)]
        assert differences(*dumped) == ladder[after].difference


def test_the_ladder_leads_from_everything_off_to_the_users_configuration(ladder, full):
    base = ladder["baseline"].config
    assert (base.standardise.domain, base.batch_norm.domain, base.head.kind) == ("global", "none", "softmax")
    assert not base.mean_teacher.enabled
    assert (len(base.backbones), base.folds.trained) == (1, (0,))
    assert ladder["folds"].config == full
    assert {rung.config.standardise.domain for rung in ladder.values() if rung.route == "adabn"} == {"global"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("standardise.domain=experiment", "with standardise.domain plate; got experiment"),
        ("batch_norm.domain=plate", "with batch_norm.domain none; got plate"),
        ("head.kind=softmax", "with head.kind arcface"),
        ("mean_teacher.enabled=false", "with mean_teacher.enabled True"),
        ("mean_teacher.pseudo_labels=none", "pseudo_labels hard or soft"),
        ("backbones=[{name: only}]", "two backbones"),
        ("folds.train=[1]", "must train fold 0 and another"),
        ("mean_teacher.fused_labels=p.csv", "leave mean_teacher.fused_labels out"),
        ("init_from=old-1", "leave init_from out"),
    ],
)
def test_refuses_a_configuration_without_a_part_that_a_rung_adds(change, message):
    with pytest.raises(InputError, match=message):
        rungs(RunConfig.load("growth", [change]))


def test_the_shipped_screen_changes_only_size_and_effect_of_the_simulator(full):
    simulate = differences(RunConfig().simulate.model_dump(mode="json"), full.simulate.model_dump(mode="json"))
    # Spreads of experiments and plates, noise and missing wells are the calibrated ones.
    assert {name.split(".")[0] for name in simulate} == {
        "labelled", "unlabelled", "treatments_per_group", "cell_diameter", "effect"
    }  # fmt: skip
