"""Which runs may start from which: never a network that has learned what will score it, nor another network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from components.core.config import BackboneConfig, HeadConfig, PackConfig
from components.core.errors import InputError
from components.core.learning.warm_start import (
    Scored,
    check_labels,
    check_networks,
    learned_by,
    scored_by,
    scored_by_tables,
)
from components.core.screen.layouts import read_screen
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary, WellRecord
from components.core.storage.run_records import Learned, SourceRun, TaskRecord
from components.normalize.step import run as normalize
from tests.components.core.learning.tiny_networks import RUN, SLIM, SMALL
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen

WELLS = ("B03", "B04", "C02")
EXPERIMENTS = ("E-1", "E-2", "E-3", "E-4")


def manifest(folds: Mapping[str, int | Sequence[int]], unlabelled: Sequence[str] = ()) -> Manifest:
    """A plate of three treatment wells an experiment; folds of whole experiments, or of each well."""
    plates = []
    for experiment in (*folds, *unlabelled):
        labelled, own = experiment in folds, folds.get(experiment, ())
        wells = tuple(
            WellRecord(
                id_code=f"{experiment}_1_{well}",
                well=well,
                well_type="treatment",
                sirna="a" if labelled else None,
                sites=(),
            )
            for well in WELLS
        )
        control = WellRecord(
            id_code=f"{experiment}_1_B02", well="B02", well_type="negative_control", sirna="c", sites=()
        )
        plates.append(
            PlateRecord(
                experiment=experiment, plate=1, cell_type="E", labelled=labelled, prefix=f"plates/{experiment}", histograms=(),
                wells=(control, *wells), well_folds=() if isinstance(own, int) or not own else (-1, *own),
            )
        )  # fmt: skip
    return Manifest(
        store="s3://b", channels=6, image_size=8, codec=PackConfig(),
        vocabulary=Vocabulary(treatments=("a",), positives=(), negatives=("c",)),
        folds={e: f for e, f in folds.items() if isinstance(f, int)}, plates=tuple(plates),
    )  # fmt: skip


def source(screen: Manifest, folds: Sequence[int] = (0, 1, 2), earlier: Learned | None = None) -> SourceRun:
    """A run that trained one backbone on a screen, perhaps from weights of a run before it."""
    weights = {
        (fold, "slim"): TaskRecord(
            step="pretrain", fold=fold, backbone="slim", screen=screen.digest(), prefix="finished/x",
            learned=learned_by(screen, fold) | (earlier or Learned()),
        )
        for fold in folds
    }  # fmt: skip
    return SourceRun("old-1", {"slim": SLIM}, HeadConfig(), weights)


def check(
    then: Manifest, now: Manifest, held_out: Sequence[str] = (), folds: Sequence[int] = (0, 1), **more: Any
) -> list[str]:
    return check_labels(source(then, **more), then, scored_by(now, held_out), folds, ["slim"])


THEN = manifest({"E-1": 0, "E-2": 1}, unlabelled=["E-3"])


def test_rejects_an_experiment_that_changed_its_fold() -> None:
    with pytest.raises(
        InputError, match=r"^init_from: E-2 \(and 1 more\) validates in fold 0 now, but fold 0 of run old-1 has "
    ) as e:
        check(
            THEN, manifest({"E-2": 0, "E-1": 1, "E-4": 0, "E-5": 0}), folds=(0,), earlier=Learned(experiments=("E-5",))
        )
    assert "because it is in fold 1 there; let every experiment keep its fold (folds.known.E-2=1" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("now", "held_out", "message"),
    [
        (
            manifest({"E-1": 0, "E-4": 1}),
            ["E-2"],
            "E-2 is held out now, but run old-1 learned its labels; hold out an experim",
        ),
        (manifest({"E-2": 1, "E-4": 0}), ["E-1"], "E-1 is held out now, but run old-1 learned its labels"),
        (
            manifest({"E-1": 0, "E-4": 1}, ["E-2"]),
            [],
            "E-2 has no labels now, but run old-1 learned its labels; take it out",
        ),
    ],
)
def test_rejects_held_out_or_unlabelled_experiments_whose_labels_were_learned(
    now: Manifest, held_out: list[str], message: str
) -> None:
    # Even the fold that validated on it selected its weights by those labels.
    for fold in (0, 1):
        with pytest.raises(InputError, match=message):
            check(THEN, now, held_out, folds=[fold])


def test_warns_if_a_formerly_unlabelled_experiment_is_held_out() -> None:
    (said,) = check(THEN, manifest({"E-1": 0, "E-2": 1}), ["E-3", "E-9"])
    assert said == "E-3 is held out now, but was unlabelled in run old-1: its controls may have been trained on"


def test_warns_if_the_earlier_run_started_from_a_weights_file() -> None:
    given = source(THEN)
    weighted = SourceRun(given.key, {"slim": SLIM.model_copy(update={"weights": "w.pt"})}, given.head, given.weights)
    said = check_labels(weighted, THEN, scored_by(THEN, ()), (0, 1), ["slim"])
    assert said == ["slim of run old-1 started from w.pt; what these weights had learned is unknown"]


def test_labels_learned_by_still_earlier_runs_count() -> None:
    """E-4 was trained on two runs ago, left the screen, and comes back to validate."""
    now = manifest({"E-1": 0, "E-2": 1, "E-4": 0})
    for earlier in (Learned(experiments=("E-4",)), Learned(wells=("E-4_1_C02",))):
        with pytest.raises(InputError, match=r"E-4 validates in fold 0 now, .* or a run that it started from has"):
            check(THEN, now, earlier=earlier)
        with pytest.raises(InputError, match="E-4 is held out now"):
            check(THEN, THEN, ["E-4"], earlier=earlier)
    assert check(THEN, now, earlier=Learned(wells=("E-5_1_C02",))) == []


def test_folds_of_wells_are_compared_well_by_well() -> None:
    then = manifest({"E-1": [0, 1, 0], "E-2": [1, 0, 1]})
    assert check(then, then) == []
    assert learned_by(then, 0) == Learned(wells=("E-1_1_B04", "E-2_1_B03", "E-2_1_C02"))
    with pytest.raises(
        InputError,
        match=r"E-2 validates in fold 0 now, .*; assign wells to folds as that run did \(folds.count, folds.se",
    ):
        check(then, manifest({"E-1": [0, 1, 0], "E-2": [0, 0, 1]}))
    # Whole experiments hold out what single wells have taught, and the other way round.
    with pytest.raises(InputError, match="E-1 validates in fold 0 now"):
        check(then, THEN)
    with pytest.raises(InputError, match="E-2 validates in fold 0 now"):
        check(THEN, then)


@st.composite
def screens(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(st.sampled_from(EXPERIMENTS), unique=True, min_size=1))
    by_well = draw(st.booleans())
    fold = st.lists(st.integers(-1, 2), min_size=3, max_size=3) if by_well else st.integers(0, 2)
    labelled = {name: draw(fold) for name in names if draw(st.booleans())}
    return manifest(labelled, [name for name in names if name not in labelled])


def roles(screen: Manifest, fold: int) -> dict[str, set[str]]:
    """Wells by what the fold does with them, worked out plainly."""
    found: dict[str, set[str]] = {"trains": set(), "validates": set(), "unlabelled": set(), "dealt": set()}
    for plate in screen.plates:
        for n, well in enumerate(plate.wells[1:], start=1):
            of = plate.well_folds[n] if plate.well_folds else screen.folds.get(plate.experiment, -1)
            role = "unlabelled" if not plate.labelled else "validates" if of == fold else "trains" if of >= 0 else ""
            found.setdefault(role, set()).add(well.id_code)
            if role in ("trains", "validates"):
                found["dealt"].add(well.id_code)
    return found


def experiments(wells: set[str]) -> set[str]:
    return {well.split("_")[0] for well in wells}


@given(screens(), screens(), st.lists(st.sampled_from(EXPERIMENTS), unique=True), st.integers(0, 2))
def test_refuses_exactly_the_runs_that_would_score_learned_labels(
    then: Manifest, now: Manifest, out: list[str], fold: int
) -> None:
    assume(not {plate.experiment for plate in now.plates} & set(out))
    before, after = roles(then, fold), roles(now, fold)
    leaks = bool(before["trains"] & after["validates"])
    leaks |= bool(experiments(before["dealt"]) & (experiments(after["unlabelled"]) | set(out)))
    refused = ""
    try:
        check(then, now, out, folds=[fold])
    except InputError as error:
        refused = str(error)
    assert bool(refused) == leaks, refused


@given(screens(), screens(), screens(), st.integers(0, 2))
def test_a_chain_of_runs_keeps_all_learned_labels(a: Manifest, b: Manifest, c: Manifest, fold: int) -> None:
    first = roles(a, fold)["trains"] | roles(b, fold)["trains"]
    try:
        check(b, c, folds=[fold], earlier=learned_by(a, fold))
    except InputError:
        return
    assert not first & roles(c, fold)["validates"]
    assert not experiments(first) & experiments(roles(c, fold)["unlabelled"])


def test_tables_and_manifest_agree_on_scored_wells(tmp_path: Any) -> None:
    config = CONFIG.model_copy(
        update={"screen": CONFIG.screen.model_copy(update={"holdout_experiments": ("HUVEC-02",)})}
    )
    TinyScreen(tmp_path / "screen")
    told: list[Sequence[Scored]] = []
    paths = [tmp_path / name for name in ("s.json", "h.json", "l.csv")]
    normalize(config, tmp_path / "screen", MemoryStore(), *paths, check_scored=told.append)
    (by_tables,) = told
    by_manifest = scored_by(Manifest.read(paths[0]), ["HUVEC-02"])
    assert sorted(by_tables, key=repr) == sorted(by_manifest, key=repr)
    screen = read_screen(tmp_path / "screen", config.screen)
    wells = {well.id_code: n % 3 for n, well in enumerate(w for p in screen.plates for w in p.wells)}
    dealt = scored_by_tables(screen, {}, wells)
    assert {f for each in dealt if each.how == "validation" for f in each.folds} == {0, 1, 2}


NETWORKS = SourceRun("old-1", {"slim": SLIM, "small": SMALL}, HeadConfig(), source(THEN).weights)


@pytest.mark.parametrize(
    ("backbone", "head", "folds", "message"),
    [
        (SLIM.model_copy(update={"name": "wide"}), {}, (0,), "run old-1 has no backbone wide; it has slim, small"),
        (SLIM.model_copy(update={"stem": 8}), {}, (0,), "backbone slim has stem 8, but 4 in run old-1; make the arch"),
        (SLIM.model_copy(update={"entry": (4, 8)}), {}, (0,), r"backbone slim has entry \[4, 8\], but \[4, 6\] in run"),
        (SLIM, {"kind": "softmax"}, (0,), "head.kind is softmax, but arcface in run old-1"),
        (SLIM, {}, (0, 3), r"no pretrained weights of fold 3 and slim \(it has slim of fold 0, slim of fold 1, slim of fol"),
        (SMALL, {}, (0,), "no pretrained weights of fold 0 and small"),
    ],
)  # fmt: skip
def test_rejects_other_networks_and_missing_folds(
    backbone: BackboneConfig, head: dict[str, Any], folds: Sequence[int], message: str
) -> None:
    with pytest.raises(InputError, match=f"^init_from: .*{message}"):
        check_networks(NETWORKS, [backbone], HeadConfig(**head), folds)


def test_accepts_another_margin_and_other_initial_weights() -> None:
    check_networks(NETWORKS, [SLIM.model_copy(update={"weights": "x.pt"})], HeadConfig(scale=10, margin=0.5), (0, 2))
    assert RUN.init_from is None
