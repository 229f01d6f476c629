"""The earlier runs that a run may start from: the same networks, which have learned no label that scores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from components.core.config import BackboneConfig, HeadConfig
from components.core.errors import InputError
from components.core.learning.warm_start import Scored, check_labels, check_networks, learned_by, scored_by
from components.core.storage.manifest import Manifest
from components.core.storage.run_records import Learned, SourceRun, TaskRecord
from components.normalize.step import run as normalize
from tests.components.core.learning.tiny_networks import SLIM, SMALL
from tests.components.core.manifests import manifest as manifest_of
from tests.components.core.manifests import plate_record
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen

WELLS = ("B03", "B04", "C02")
EXPERIMENTS = ("E-1", "E-2", "E-3", "E-4")


def manifest(folds: Mapping[str, int | Sequence[int]], unlabelled: Sequence[str] = ()) -> Manifest:
    """A plate of three treatment wells an experiment; folds of whole experiments, or of each well."""
    plates = []
    for experiment in (*folds, *unlabelled):
        labelled, own = experiment in folds, folds.get(experiment, ())
        wells = {"B02": ("negative_control", "neg"), **dict.fromkeys(WELLS, ("treatment", "a" if labelled else None))}
        by_well = () if isinstance(own, int) or not own else (-1, *own)
        plates.append(plate_record(experiment, "P_1", wells, labelled=labelled, well_folds=by_well))
    return manifest_of(plates, folds={e: f for e, f in folds.items() if isinstance(f, int)})


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


def test_rejects_a_run_that_learned_the_labels_of_an_unlabelled_experiment() -> None:
    with pytest.raises(InputError, match=r"^init_from: E-2 has no labels now, but run old-1 learned its labels; take "):
        check(THEN, manifest({"E-1": 0, "E-4": 1}, ["E-2"]))


def test_advice_names_the_folds_of_the_earlier_run_as_it_can_be_set() -> None:
    now = manifest({"E-1": 1, "E-2": 0})

    def refusal(**changes: Any) -> str:
        with pytest.raises(InputError, match=r"^init_from: E-\d") as error:
            check(THEN.model_copy(update=changes), now)
        return str(error.value)

    assert "E-2 (" not in refusal()
    assert "in fold 1 there; let every experiment keep its fold (folds.known.E-2=1, and so on)" in refusal()
    overlapping = refusal(more_folds={"E-2": (2,)})
    assert "in folds 1, 2 there; let the same folds hold out" in overlapping
    assert "folds.validation" in overlapping
    by_none = refusal(config={"folds": {"count": 1}})
    assert "no fold holds it out there" in by_none
    assert "known" not in overlapping + by_none


def partly(folds: Mapping[str, int | Sequence[int]], hidden: Sequence[str]) -> Manifest:
    """The screen without the labels of some wells, `E-1_P_1_B03`, on its labelled plates."""
    whole = manifest(folds)
    plates = [
        plate.model_copy(update={"wells": tuple(
            well.model_copy(update={"perturbation": None}) if well.id_code in hidden else well for well in plate.wells
        )})
        for plate in whole.plates
    ]  # fmt: skip
    return whole.model_copy(update={"plates": tuple(plates)})


def test_rejects_a_run_that_learned_labels_which_the_tables_no_longer_have() -> None:
    folds, by_well = {"E-1": 0, "E-2": 1}, {"E-1": (0, 1, 2), "E-2": (0, 1, 2)}
    hidden = ["E-2_P_1_B04"]
    with pytest.raises(InputError, match=r"E-2 has no label of well E-2_P_1_B04 now, but run old-1 learned its labels"):
        check(THEN, partly(folds, hidden))
    assert check(partly(folds, hidden), partly(folds, hidden)) == [], "the same tables"
    assert check(partly(folds, hidden), manifest(folds)) == []
    with pytest.raises(InputError, match="no label of well E-2_P_1_B04 now"):
        check(manifest(by_well), partly(by_well, hidden))
    # E-2 was learned by a run before the earlier one, which no longer tells with which labels.
    chain = Learned(experiments=("E-2",))
    with pytest.raises(InputError, match="no label of well E-2_P_1_B04 now"):
        check(manifest({"E-1": 0}), partly({"E-1": 0, "E-2": -1}, hidden), earlier=chain)


def test_warns_of_doubtful_starts() -> None:
    now = manifest({"E-1": 0, "E-2": 1})
    (remark,) = check(THEN, now, ["E-3", "E-9"])
    assert remark == "E-3 is held out now, but was unlabelled in run old-1: its controls may have been trained on"
    plain = source(THEN)
    weighted = SourceRun(plain.key, {"slim": SLIM.model_copy(update={"weights": "w.pt"})}, plain.head, plain.weights)
    remarks = check_labels(weighted, THEN, scored_by(THEN, ()), (0, 1), ["slim"])
    assert remarks == ["slim of run old-1 started from w.pt; what these weights had learned is unknown"]


@st.composite
def screens(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(st.sampled_from(EXPERIMENTS), unique=True, min_size=1))
    by_well = draw(st.booleans())
    fold = st.lists(st.integers(-1, 2), min_size=3, max_size=3) if by_well else st.integers(0, 2)
    labelled = {name: draw(fold) for name in names if draw(st.booleans())}
    found = manifest(labelled, [name for name in names if name not in labelled])
    more = {name: (draw(st.integers(0, 2)),) for name in found.folds if draw(st.booleans())}
    return found.model_copy(update={"more_folds": more})


def roles(screen: Manifest, fold: int) -> dict[str, set[str]]:
    """Wells by their role in the fold, from plain loops."""
    found: dict[str, set[str]] = {"trains": set(), "validates": set(), "unlabelled": set(), "dealt": set()}
    for plate in screen.plates:
        for n, well in enumerate(plate.wells[1:], start=1):
            more = screen.more_folds.get(plate.experiment, ())
            of = plate.well_folds[n] if plate.well_folds else screen.folds.get(plate.experiment, -1)
            validates = of == fold or fold in more
            role = "unlabelled" if not plate.labelled else "validates" if validates else "trains" if of >= 0 else ""
            found.setdefault(role, set()).add(well.id_code)
            if role in ("trains", "validates"):
                found["dealt"].add(well.id_code)
    return found


def test_a_well_that_no_fold_got_is_learned_by_none() -> None:
    assert learned_by(manifest({"E-1": (-1, 0, 1)}), 0).wells == {"E-1": ("E-1_P_1_C02",)}


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
    screen = CONFIG.screen.model_copy(update={"holdout_experiments": ("HUVEC-02",)})
    TinyScreen(tmp_path / "screen")
    found: list[Sequence[Scored]] = []
    paths = [tmp_path / name for name in ("s.json", "h.json", "l.csv")]
    config = CONFIG.model_copy(update={"screen": screen})
    normalize(config, tmp_path / "screen", MemoryStore(), *paths, check_scored=found.append)
    by_manifest = scored_by(Manifest.read(paths[0]), ["HUVEC-02"])
    assert sorted(found[0], key=repr) == sorted(by_manifest, key=repr)


def test_the_share_of_the_linear_classifier_may_change() -> None:
    joint = replace(NETWORKS, head=HeadConfig(linear_weight=0.5))
    check_networks(joint, [SLIM], HeadConfig(linear_weight=0.8), (0,), ["HUVEC"])
    with pytest.raises(InputError, match=r"head\.linear_weight is 0\.0, but 0\.5 in run old-1"):
        check_networks(joint, [SLIM], HeadConfig(), (0,), ["HUVEC"])


NETWORKS = SourceRun("old-1", {"slim": SLIM, "small": SMALL}, HeadConfig(), source(THEN).weights)


@pytest.mark.parametrize(
    ("backbone", "head", "folds", "message"),
    [
        (SLIM.model_copy(update={"name": "wide"}), {}, (0,), "run old-1 has no backbone wide; it has slim, small"),
        (SLIM.model_copy(update={"stem": 8}), {}, (0,), "backbone slim has stem 8, but 4 in run old-1; make the arch"),
        (SLIM.model_copy(update={"entry": (4, 8)}), {}, (0,), r"backbone slim has entry \[4, 8\], but \[4, 6\] in run"),
        (SLIM, {"kind": "softmax"}, (0,), "head.kind is softmax, but arcface in run old-1"),
        (SLIM, {"cell_types": True}, (0,), "head.cell_types is True, but False in run old-1"),
        (SLIM, {"linear_weight": 0.8}, (0,), "head.linear_weight is 0.8, but 0.0 in run old-1"),
        (SLIM, {}, (0, 3), r"no pretrained weights of fold 3 and slim \(it has slim of fold 0, slim of fold 1, slim of fol"),
        (SMALL, {}, (0,), "no pretrained weights of fold 0 and small"),
    ],
)  # fmt: skip
def test_rejects_other_networks_and_missing_folds(
    backbone: BackboneConfig, head: dict[str, Any], folds: Sequence[int], message: str
) -> None:
    with pytest.raises(InputError, match=f"^init_from: .*{message}"):
        check_networks(NETWORKS, [backbone], HeadConfig(**head), folds, ["HUVEC"])


def test_accepts_another_margin_and_other_initial_weights() -> None:
    check_networks(
        NETWORKS, [SLIM.model_copy(update={"weights": "x.pt"})], HeadConfig(scale=10, margin=0.5), (0, 2), ["K562"]
    )


def test_networks_that_take_the_cell_type_need_the_same_ones() -> None:
    head = HeadConfig(cell_types=True)
    earlier = replace(NETWORKS, head=head, cell_types=("RPE", "HUVEC"))
    check_networks(earlier, [SLIM], head, (0,), ["HUVEC", "RPE"])
    message = r"init_from: the cell types, .*, are HUVEC, but HUVEC, RPE in run old-1; leave"
    with pytest.raises(InputError, match=message):
        check_networks(earlier, [SLIM], head, (0,), ["HUVEC"])
