"""Site passes of a plan against real steps that count every image, and how they grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import RunConfig
from components.core.learning import prediction, team
from components.core.learning.schedules import well_batches
from pipelines.plan import site_passes
from pipelines.plan.dag import PlannedTask, planned_tasks
from pipelines.plan.screens import screen_wells
from pipelines.plan.site_passes import Passes, Refreshes, batch_sizes, refreshes, task_passes, validated_epochs
from pipelines.plan.transfers import sites_read
from tests.components.core.learning.tiny_networks import RUN, SLIM, SMALL
from tests.pipelines.plan.counted_run import CountedScreen, Counts, counted, refreshes_of

WIDTH = {SMALL.name: SMALL.exit[-1], SLIM.name: SLIM.exit[-1]}


def tiny(**sections: dict[str, object]) -> RunConfig:
    data = RUN.model_dump()
    for name, fields in sections.items():
        data[name] = {**data[name], **fields}
    return RunConfig.model_validate(data)


VARIANTS = {
    "as shipped": tiny(),
    "validated every second epoch": tiny(pretrain={"validate_every": 2}, mean_teacher={"validate_every": 2}),
    "nothing selects": tiny(mean_teacher={"selection": "last", "refresh_epochs": 1, "final_epochs": 1}),
    "domain batches": tiny(batch_norm={"domain": "plate"}),
    "domain batches, controls' statistics": tiny(batch_norm={"domain": "experiment", "statistics": "controls"}),
    "held-out experiment": tiny(screen={"holdout_experiments": ("HUVEC-04",)}, embeddings={"views": 2}),
    "no embeddings, controls of training": tiny(embeddings={"enabled": False}, screen={"controls": "training"}),
    "no images kept": tiny(loader={"cache_gib": 0.0}),
    "batches in parts, small ones filled": tiny(compute={"accumulate": 5}, mean_teacher={"unlabelled_batch": 7}),
    "domain batches in parts": tiny(compute={"accumulate": 3}, batch_norm={"domain": "plate"}),
    "domains cut by pieces": tiny(batch_norm={"domain": "experiment"}),
}


def check(config: RunConfig, screen: CountedScreen, task: PlannedTask, counts: Counts) -> None:
    wells = screen_wells(config, screen.tables)
    planned = task_passes(config, wells, task)
    for name, width in WIDTH.items():
        own = [p for p in planned if p.backbone == name]
        assert sum(p.student for p in own) == counts.student[width], (task.name, name)
        assert sum(p.forward for p in own) == counts.forward[width], (task.name, name)
    assert sum(p.sites for p in planned) == counts.sites, task.name
    fetched = sites_read(config, wells, task, planned).sites
    if config.loader.cache_gib == 0:
        assert fetched == counts.sites
    else:
        # A random site a well: not every site is drawn. And two batches that are read at the same time both fetch a site
        # that is in both, which an idle machine does a few times in a screen as small as this.
        assert counts.fetched / 1.2 <= fetched <= 2 * counts.fetched, task.name


@pytest.mark.parametrize("name", VARIANTS)
def test_every_step_takes_the_passes_that_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    config = VARIANTS[name]
    if name == "domains cut by pieces":
        monkeypatch.setattr(prediction, "_PIECE", 5)
        monkeypatch.setattr(site_passes, "PIECE", 5)
    screen = CountedScreen(tmp_path, config)
    bases = []
    for backbone in WIDTH:
        with monkeypatch.context() as patch:
            counts = counted(patch)
            bases.append(screen.pretrain(0, backbone))
        check(config, screen, PlannedTask(0, "pretrain", 0, None, backbone), counts)
    with monkeypatch.context() as patch:
        counts = counted(patch)
        tuned = screen.finetune(0, "HUVEC", bases)
    check(config, screen, PlannedTask(0, "finetune", 0, "HUVEC"), counts)
    with monkeypatch.context() as patch:
        counts = counted(patch)
        made = refreshes_of(screen.pseudo_label(0, "HUVEC", tuned))
    guess = refreshes(config, "HUVEC", validates=True)
    assert guess.least <= made <= guess.most
    assert guess.least <= guess.expected <= guess.most
    # The only count that depends on what is learned is put in as it came out.
    monkeypatch.setattr(site_passes, "refreshes", lambda *_: Refreshes(made, float(made), made))
    check(config, screen, PlannedTask(0, "pseudo_label", 0, "HUVEC"), counts)


@pytest.mark.parametrize("teacher", [True, False])
def test_a_run_without_pseudo_labels_predicts_with_infer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: bool
):
    config = tiny(mean_teacher={"enabled": teacher, "pseudo_labels": "none"})
    screen = CountedScreen(tmp_path, config)
    bases = [screen.pretrain(1, backbone) for backbone in WIDTH]
    if teacher:
        with monkeypatch.context() as patch:
            counts = counted(patch)
            bases = [screen.finetune(1, "HUVEC", bases)]
        check(config, screen, PlannedTask(0, "finetune", 1, "HUVEC"), counts)
    with monkeypatch.context() as patch:
        counts = counted(patch)
        screen.infer(1, "HUVEC", bases)
    check(config, screen, PlannedTask(0, "infer", 1, "HUVEC"), counts)


def test_constants_are_those_of_training():
    assert (site_passes.PIECE, site_passes.LEAST) == (prediction._PIECE, team.LEAST)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 20), st.booleans())
def test_batches_are_as_large_as_those_of_training(counts: list[int], size: int, by_domain: bool):
    domain_W = np.repeat(np.arange(len(counts)), counts)
    drawn = well_batches(np.arange(len(domain_W)), size, np.random.default_rng(0), domain_W if by_domain else None)
    assert sorted(batch_sizes(counts, size, by_domain)) == sorted(map(len, drawn))


@given(st.integers(0, 5), st.integers(1, 12), st.integers(1, 5))
def test_validations_come_every_so_many_epochs_and_at_the_end(first: int, epochs: int, every: int):
    found = validated_epochs(first, first + epochs, every)
    assert len(found) == -(-epochs // every)
    assert found[-1] == first + epochs - 1


def test_refreshes_by_the_clock_are_known():
    config = RunConfig.load("rxrx1", ["mean_teacher.selection=last"])
    # U2OS: epochs 40 to 164, every tenth, and before the first.
    assert refreshes(config, "U2OS", validates=True) == Refreshes(13, 13.0, 13)
    assert refreshes(RunConfig.load("rxrx1"), "U2OS", validates=False) == Refreshes(13, 13.0, 13)


def of_run(changes: list[str]) -> Iterator[tuple[PlannedTask, Passes]]:
    config = RunConfig.load("rxrx1", changes)
    wells = screen_wells(config, None)
    for task in planned_tasks(config):
        for passes in task_passes(config, wells, task):
            yield task, passes


def total(changes: list[str], step: str, purpose: str, what: str = "forward") -> int:
    return sum(getattr(p, what) for task, p in of_run(changes) if (task.step, p.purpose) == (step, purpose))


def test_work_grows_with_epochs_views_backbones_and_folds():
    usual: list[str] = []
    assert total(["pretrain.epochs=80"], "pretrain", "training", "student") * 2 == total(
        usual, "pretrain", "training", "student"
    )
    assert total(["predict.views=4"], "pseudo_label", "logits") == total(usual, "pseudo_label", "logits")
    half = total(["predict.views=4", "embeddings.views=4"], "pseudo_label", "logits")
    assert half * 2 == total(usual, "pseudo_label", "logits")
    assert total(["embeddings.views=1"], "pseudo_label", "embeddings") * 8 == total(usual, "pseudo_label", "embeddings")
    one = total(["backbones=[xception]"], "finetune", "training", "student")
    assert one * 2 == total(usual, "finetune", "training", "student")
    everything = ("logits", "embeddings")
    one = sum(total(["folds.train=[0]"], "pseudo_label", purpose) for purpose in everything)
    assert one * 5 == sum(total(usual, "pseudo_label", purpose) for purpose in everything)


def test_every_well_is_embedded_in_all_views_by_every_fold_and_backbone():
    wells = len(screen_wells(RunConfig.load("rxrx1"), None).fold_W)
    both = total([], "pseudo_label", "embeddings") + total([], "pseudo_label", "logits")
    assert both == wells * 2 * 8 * 5 * 2
    # Held-out and unlabelled treatments by each fold, labelled ones by the fold that holds them out.
    named = 5 * (18 + 2) * 1108 + 31 * 1108
    assert total([], "pseudo_label", "logits") == named * 2 * 8 * 2


def test_work_grows_linearly_with_the_experiments():
    base = ["screen.cell_types=[HUVEC]", "screen.holdout_experiments=[]", "folds.count=2"]

    def passes(labelled: int, unlabelled: int) -> dict[tuple[str, str], int]:
        sizes = [f"simulate.labelled={{HUVEC: {labelled}}}", f"simulate.unlabelled={{HUVEC: {unlabelled}}}"]
        found: dict[tuple[str, str], int] = {}
        for task, p in of_run([*base, *sizes]):
            found[task.step, p.purpose] = found.get((task.step, p.purpose), 0) + p.student + p.forward
        return found

    single, double = passes(6, 2), passes(12, 4)
    for key, value in single.items():
        # Batches are cut to the nearest whole number of them.
        assert double[key] == pytest.approx(2 * value, rel=0.002), key


def test_a_well_less_is_a_pass_less_in_every_epoch(tmp_path: Path):
    config = tiny()
    screen = CountedScreen(tmp_path, config)
    wells = screen_wells(config, screen.tables)
    task = PlannedTask(0, "pretrain", 0, None, "small")
    before = task_passes(config, wells, task)[0].student
    fewer = replace(wells, holdout_W=wells.holdout_W | (np.arange(len(wells.fold_W)) == 0))
    # The first well is a control of a training experiment, which every epoch sees once.
    assert before - task_passes(config, fewer, task)[0].student == config.pretrain.epochs
