from itertools import permutations

import numpy as np
import pytest
from scipy.special import log_softmax

from components.core.config import PriorConfig
from components.core.errors import InputError
from components.core.prior.assignment import competitions
from components.core.prior.balancing import assign_plate
from components.core.prior.plate_groups import (
    NoPlateDesignError,
    PlateGroups,
    candidates,
    check_design,
    infer_arrangement,
    infer_arrangements,
)
from components.core.storage.manifest import PlateRecord
from tests.components.core.manifests import plate_record


def design(size: int, *known: tuple[int, ...]) -> PlateGroups:
    """Groups of `size` contiguous classes, with labelled experiments of the given arrangements."""
    plates = tuple(str(n + 1) for n in range(len(known[0])))
    members = tuple(np.arange(g * size, (g + 1) * size) for g in range(len(plates)))
    return PlateGroups(
        plates, members, {f"E-{n}": dict(zip(plates, held, strict=True)) for n, held in enumerate(known)}
    )


def draw(rng, groups: PlateGroups, held: tuple[int, ...], wells: list[int], shift: float):
    """Normal noise plus a shift on the true class of every well; returns logits by plate and the raw hits."""
    logits, hits = {}, []
    for plate, group, count in zip(groups.plates, held, wells, strict=True):
        true_W = rng.permutation(groups.members[group])[:count]
        logits_WK = rng.standard_normal((count, groups.treatments))
        logits_WK[np.arange(count), true_W] += shift
        hits.append(logits_WK.argmax(axis=1) == true_W)
        logits[plate] = logits_WK
    return logits, np.concatenate(hits)


@pytest.fixture
def rng():
    return np.random.default_rng(20190)


def test_cyclic_candidates_are_the_rotations_of_the_labelled_experiments():
    assert set(candidates(design(2, (0, 1, 2, 3), (2, 3, 0, 1), (1, 2, 3, 0)), "cyclic")) == {
        (0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)
    }  # fmt: skip
    # Plates 1 and 3, 3 and 2, 2 and 4 follow each other: not the cycle of the plate numbers.
    ring = design(2, (0, 1, 2, 3), (2, 3, 1, 0))
    assert (2, 3, 1, 0) in candidates(ring, "cyclic")
    assert len(candidates(ring, "cyclic")) == 4
    # One labelled arrangement leaves all powers of all 4-cycles: the identity, six 4-cycles, three double swaps.
    found = candidates(design(2, (0, 1, 2, 3)), "cyclic")
    assert len(found) == 10
    assert (1, 0, 3, 2) in found
    assert (1, 0, 2, 3) not in found


def test_agrees_with_scoring_every_permutation_plate_by_plate(rng):
    groups = design(5, (0, 1, 2))
    logits, _ = draw(rng, groups, (2, 0, 1), [5, 4, 5], 1.0)
    found = infer_arrangement(logits, groups, "all", "E-9")
    slow = {}
    for held in permutations(range(3)):
        total = 0.0
        for plate, group in zip(groups.plates, held, strict=True):
            within = log_softmax(logits[plate], axis=1)[:, groups.members[group]]
            total += within[np.arange(len(within)), assign_plate(within)].sum()
        slow[held] = total
    ordered = sorted(slow.values(), reverse=True)
    assert found.margin == pytest.approx(ordered[0] - ordered[1])
    assert tuple(found.groups.values()) == max(slow, key=slow.__getitem__)


def test_finds_the_arrangement_with_missing_plates_and_wells(rng):
    groups = design(12, (0, 1, 2, 3), (1, 2, 3, 0))
    logits, _ = draw(rng, groups, (3, 0, 1, 2), [12, 11, 12, 9], 5.0)
    del logits["2"]
    found = infer_arrangement(logits, groups, "cyclic", "E-9")
    assert found.groups == {"1": 3, "3": 1, "4": 2}
    assert found.accepted(PriorConfig())
    # Arrangements that differ only on missing plates are one, so that the second best is another.
    del logits["4"]
    assert infer_arrangement(logits, groups, "all", "E-9").accepted(PriorConfig())


def test_labels_tell_an_arrangement_that_few_wells_do_not(rng):
    groups = design(12, (0, 1, 2, 3), (1, 2, 3, 0))
    logits, _ = draw(rng, groups, (3, 0, 1, 2), [1, 1, 0, 0], 9.0)
    logits = {plate: x for plate, x in logits.items() if len(x)}
    rows = np.concatenate(list(logits.values()))
    for labelled, problem in (({}, True), ({"E-9": {"4": 2}}, False), ({"E-8": {"4": 2}}, True)):
        found = infer_arrangements(rows, ["E-9"] * 2, ["1", "2"], groups, "cyclic", labelled)["E-9"]
        assert ("2 treatment wells, too few to tell" in found.problem) == problem
        assert found.accepted(PriorConfig()) != problem
        assert found.groups == ({} if problem else {"1": 3, "2": 0})
        parts = competitions(["E-9"] * 2, ["1", "2"], {"E-9": found}, groups, PriorConfig())
        assert [part.plate for part in parts] == ([] if problem else ["1", "2"]), "nothing is balanced"
    # Labels outweigh the logits, as far as they go.
    logits, _ = draw(rng, groups, (3, 0, 1, 2), [12] * 4, 5.0)
    assert infer_arrangement(logits, groups, "cyclic", "E-9", {"1": 1}).groups["2"] == 2


def test_labels_that_no_rotation_has_are_refused(rng):
    """Plates 1 and 2 hold groups 0 and 2, and others tell that 1 follows 0."""
    part = [plate for plate in labelled((0, 1, 2, 3), (1, 2, 3, 0), (0, 2, 1, 3)) if (plate.experiment, plate.plate) not in
            {("E-2", "3"), ("E-2", "4")}]  # fmt: skip
    with pytest.raises(InputError, match=r"set prior\.permutations to all"):
        check_design(part, TREATMENTS, PriorConfig(), "experiment")
    assert check_design(part, TREATMENTS, PriorConfig(permutations="all"), "experiment") == ""
    groups = design(12, (0, 1, 2, 3), (1, 2, 3, 0))
    logits, _ = draw(rng, groups, (0, 2, 1, 3), [0, 0, 12, 12], 5.0)
    with pytest.raises(InputError, match="E-9: its labelled plates fit no arrangement"):
        infer_arrangement({p: logits[p] for p in "34"}, groups, "cyclic", "E-9", {"1": 0, "2": 2})


def test_a_bias_that_few_wells_share_does_not_choose_the_arrangement(rng):
    groups = design(40, (0, 1, 2, 3), (1, 2, 3, 0))
    accepted = wrong = 0
    for _ in range(30):
        held = candidates(groups, "cyclic")[rng.integers(4)]
        logits, _ = draw(rng, groups, held, [10, 0, 0, 0], 4.0)
        found = infer_arrangement({"1": logits["1"] + 5 * rng.standard_normal(160)}, groups, "cyclic", "E-9")
        accepted += found.accepted(PriorConfig())
        wrong += found.accepted(PriorConfig()) and found.groups["1"] != held[0]
    assert wrong == 0
    assert accepted >= 25


def test_separation_does_not_depend_on_the_scale_of_the_logits(rng):
    groups = design(12, (0, 1, 2, 3), (1, 2, 3, 0))
    logits, _ = draw(rng, groups, (1, 2, 3, 0), [12] * 4, 0.0)
    plain = infer_arrangement(logits, groups, "cyclic", "E-9")
    loud = infer_arrangement({plate: 30 * x for plate, x in logits.items()}, groups, "cyclic", "E-9")
    assert loud.margin == pytest.approx(30 * plain.margin)
    assert loud.separation == pytest.approx(plain.separation)
    assert loud.margin > PriorConfig().min_margin
    assert not loud.accepted(PriorConfig(min_separation=plain.separation + 0.1))
    assert loud.accepted(PriorConfig(min_separation=plain.separation - 0.1))


RXRX1 = design(277, (0, 1, 2, 3), (2, 3, 0, 1), (1, 2, 3, 0))
"""As many groups and perturbations as RxRx1 has."""


def test_arrangements_of_rxrx1s_size_are_correct_in_9_of_10_draws(rng):
    options, hits, correct = candidates(RXRX1, "cyclic"), [], 0
    for _ in range(10):
        held = options[rng.integers(len(options))]
        logits, hit = draw(rng, RXRX1, held, rng.integers(274, 278, 4), 1.65)
        hits.append(hit.mean())
        correct += tuple(infer_arrangement(logits, RXRX1, "cyclic", "E-9").groups.values()) == held
    assert np.mean(hits) == pytest.approx(0.06, abs=0.012)
    assert correct >= 9


def test_no_wrong_arrangement_of_rxrx1s_size_is_accepted_near_chance(rng):
    wrong = hits = 0.0
    for _ in range(8):
        held = candidates(RXRX1, "cyclic")[rng.integers(4)]
        # 2.4 % raw top-1; the scale of an overconfident network must not matter.
        logits, hit = draw(rng, RXRX1, held, rng.integers(274, 278, 4), 1.2)
        found = infer_arrangement({p: 5 * x for p, x in logits.items()}, RXRX1, "cyclic", "E-9")
        wrong += found.accepted(PriorConfig()) and tuple(found.groups.values()) != held
        hits += hit.mean() / 8
    assert hits == pytest.approx(0.024, abs=0.008)
    assert wrong == 0


TREATMENTS = [f"s{group}_{k}" for group in range(4) for k in range(10)]


def labelled(*arrangements: tuple[int, ...], slip: str = "") -> list[PlateRecord]:
    """Experiments of four plates whose groups have ten perturbations each; `slip` replaces the first well's label."""
    found = []
    for n, held in enumerate(arrangements):
        for plate, group in enumerate(held):
            labels = [f"s{group}_{k}" for k in range(10)]
            if slip and not found:
                labels[0] = slip
            wells = {f"A{k + 1:02}": ("treatment", label) for k, label in enumerate(labels)}
            found.append(plate_record(f"E-{n}", str(plate + 1), wells, labelled=True))
    return found


def test_check_design_rejects_mistakes():
    assert check_design(labelled((0, 1, 2, 3), (1, 2, 3, 0)), TREATMENTS, PriorConfig(), "experiment") == ""
    swapped = (0, 1, 2, 3), (1, 0, 2, 3)
    with pytest.raises(InputError, match=r"set prior\.permutations to all"):
        check_design(labelled(*swapped), TREATMENTS, PriorConfig(), "experiment")
    assert check_design(labelled(*swapped), TREATMENTS, PriorConfig(permutations="all"), "experiment") == ""
    wrong = labelled(*swapped, slip="s1_0")
    with pytest.raises(InputError, match="s1_0 is in two plate groups"):
        check_design(wrong, TREATMENTS, PriorConfig(permutations="all"), "experiment")
    assert check_design(wrong, TREATMENTS, PriorConfig(enabled=False), "experiment") == ""


def test_check_design_says_why_there_is_none_or_refuses():
    fine = labelled((0, 1, 2, 3), (1, 2, 3, 0))
    barcodes = [plate.model_copy(update={"plate": f"BR{n}"}) for n, plate in enumerate(fine)]
    unlabelled = [plate.model_copy(update={"labelled": False}) for plate in barcodes[4:]]
    for plates, split, reason in (
        (labelled((0, 0, 1, 1)), "experiment", "hold the same treatments"),
        (barcodes, "experiment", "other names in every experiment"),
        ([*fine[:4], *unlabelled], "experiment", "other names in every experiment"),
        (fine, "plate", "folds hold out plates"),
    ):
        assert reason in check_design(plates, TREATMENTS, PriorConfig(), split)
        with pytest.raises(NoPlateDesignError, match=reason):
            check_design(plates, TREATMENTS, PriorConfig(on_low_margin="refuse"), split)
