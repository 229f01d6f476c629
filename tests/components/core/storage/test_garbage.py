"""What may go from a store, by drawn stores and records: never what a run needs, never what is young, all of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.storage.garbage import Contents, Garbage, Lead, find_garbage, is_lead, is_ours, needs_of
from components.core.storage.inventory import StoredObject, UnfinishedUpload

NOW = datetime(2026, 11, 24, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=2)
PLATES = [f"plates/HUVEC-0{n}_Plate1-{n:032x}" for n in range(4)]
PLACES = [f"finished/{step}/{n:064x}" for n in range(2) for step in ("pretrain", "pseudo_label")]
ATTEMPTS = [f"{n:032x}" for n in range(3)]
LEADS = [f"{kind}/{n:064x}.json" for n in range(2) for kind in ("fingerprints", "copies")]
FOREIGN = [
    "plates/notes.txt", "plates/HUVEC-01/plate.json", f"finished/pretrain/{1:064x}/readme", "finished/pretrain/short/x/y",
    "checkpoints/pretrain/x/state", f"finished/pretrain/{1:063x}/{1:032x}/weights",
]  # fmt: skip

times = st.integers(0, 96).map(lambda hours: NOW - timedelta(hours=hours))


@dataclass(frozen=True)
class Store:
    """A drawn store, with what its runs name."""

    objects: tuple[StoredObject, ...]
    leads: dict[str, Lead]
    plates: frozenset[str]
    finished: frozenset[str]
    winners: dict[str, str]

    def contents(self) -> Contents:
        contents = Contents()
        for found in self.objects:
            contents.add(found)
        return contents

    def garbage(self) -> list[Garbage]:
        needs = needs_of(self.plates, self.finished, self.leads, CUTOFF)
        return find_garbage(self.contents(), self.leads, needs, self.winners, CUTOFF)

    def without(self, garbage: Sequence[Garbage]) -> Store:
        gone = [item.prefix for item in garbage]
        return Store(
            tuple(o for o in self.objects if not (is_ours(o.key) and o.key.startswith(tuple(f"{p}/" for p in gone)))),
            {key: lead for key, lead in self.leads.items() if key not in gone},
            self.plates,
            self.finished,
            self.winners,
        )


@st.composite
def stores(draw: st.DrawFn) -> Store:
    keys = [f"{plate}/{name}" for plate in PLATES for name in ("plate.json", "B/03/0/c", "zarr.json")]
    keys += [f"{place}/{a}/weights/{n}" for place in PLACES for a in ATTEMPTS for n in ("meta.json", "w.safetensors")]
    keys += [f"{place}/done.json" for place in PLACES]
    keys += [f"{place.replace('finished', 'checkpoints')}/{n}" for place in PLACES for n in ("state", "latest.json")]
    keys += FOREIGN
    chosen = draw(st.lists(st.sampled_from(keys), unique=True))
    objects = tuple(StoredObject(key, draw(st.integers(0, 9)), draw(times)) for key in chosen)
    pointing = draw(st.dictionaries(st.sampled_from(LEADS), st.tuples(times, st.sampled_from(PLATES))))
    done = [place for place in PLACES if f"{place}/done.json" in chosen]
    return Store(
        objects,
        {key: Lead(when, 9, plate) for key, (when, plate) in pointing.items()},
        frozenset(draw(st.sets(st.sampled_from(PLATES)))),
        frozenset(draw(st.sets(st.sampled_from(PLACES)))),
        {place: draw(st.sampled_from(ATTEMPTS)) for place in done if draw(st.booleans())},
    )


def gone(store: Store) -> set[str]:
    left = {found.key for found in store.without(store.garbage()).objects}
    return {found.key for found in store.objects} - left


def youngest(store: Store, prefix: str) -> datetime:
    return max(o.modified for o in store.objects if o.key.startswith(f"{prefix}/") and o.key not in FOREIGN)


@given(stores())
def test_nothing_that_a_run_needs_goes(store: Store) -> None:
    for key in gone(store):
        assert not key.startswith(tuple(f"{plate}/" for plate in store.plates))
        place = "/".join(key.split("/")[:3])
        if place in store.finished:
            assert not key.endswith("/done.json")
            assert place not in store.winners or key.split("/")[3] != store.winners[place]


@given(stores())
def test_nothing_young_goes_but_checkpoints_of_finished_steps(store: Store) -> None:
    keys = {found.key for found in store.objects}
    for found in store.objects:
        if found.key in gone(store) and found.modified > CUTOFF:
            assert found.key.startswith("checkpoints/")
            assert "/".join(["finished", *found.key.split("/")[1:3], "done.json"]) in keys
    for item in store.garbage():
        if item.kind == "plate lead":
            assert store.leads[item.prefix].modified <= CUTOFF


@given(stores())
def test_a_plate_with_a_young_lead_stays(store: Store) -> None:
    for lead in store.leads.values():
        if lead.modified > CUTOFF:
            assert not [key for key in gone(store) if key.startswith(f"{lead.plate}/")]


@given(stores())
def test_what_leads_to_a_plate_that_stays_stays(store: Store) -> None:
    left = store.without(store.garbage())
    for key, lead in store.leads.items():
        if left.contents().plates.get(lead.plate):
            assert left.leads[key] == lead


@given(stores())
def test_all_that_is_old_and_of_no_use_goes_at_once(store: Store) -> None:
    left = store.without(store.garbage())
    assert left.garbage() == []
    renewed = {lead.plate for lead in store.leads.values() if lead.modified > CUTOFF}
    for found in left.objects:
        if found.key in FOREIGN:
            continue
        kind, *_ = found.key.split("/")
        if kind == "plates":
            plate = "/".join(found.key.split("/")[:2])
            assert plate in store.plates | renewed or youngest(store, plate) > CUTOFF
        if kind == "finished":
            place, name = "/".join(found.key.split("/")[:3]), found.key.split("/")[3]
            assert place in store.finished or youngest(store, place) > CUTOFF
            whole = any(o.key == f"{place}/done.json" for o in store.objects)
            if name != "done.json" and youngest(store, f"{place}/{name}") <= CUTOFF:
                assert store.winners.get(place) == name or (whole and place not in store.winners)
        if kind == "checkpoints":
            place = "/".join(found.key.split("/")[:3])
            assert youngest(store, place) > CUTOFF
    for key, lead in left.leads.items():
        there = any(o.key.startswith(f"{lead.plate}/") and is_ours(o.key) for o in left.objects)
        assert key in store.leads
        assert lead.modified > CUTOFF or there


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        *((key, True) for key in LEADS),
        ("copies/readme.txt", False),
        (f"copies/{1:063x}.json", False),
        (f"copies/{1:064x}.json.bak", False),
        (f"copies/of-mine/{1:064x}.json", False),
        (f"my-copies/{1:064x}.json", False),
        (f"fingerprints/{'g' * 64}.json", False),
    ],
)
def test_leads_are_known_by_their_form(key: str, ours: bool) -> None:
    assert is_lead(key) is ours


@given(stores())
def test_objects_of_another_form_stay_and_are_counted(store: Store) -> None:
    assert not gone(store) & set(FOREIGN)
    assert store.contents().others == len([o for o in store.objects if o.key in FOREIGN])


@given(stores())
def test_sizes_add_up_and_what_makes_a_thing_whole_is_told(store: Store) -> None:
    for item in store.garbage():
        own = [o for o in store.objects if o.key.startswith(f"{item.prefix}/") and o.key not in FOREIGN]
        if item.kind != "plate lead":
            assert (item.objects, item.size) == (len(own), sum(o.size for o in own))
            assert item.newest == max(o.modified for o in own)
        record = {"plate": "plate.json", "finished output": "done.json"}.get(item.kind)
        assert item.record == (f"{item.prefix}/{record}" if record else None)


@pytest.mark.parametrize(
    ("key", "hours", "goes"),
    [
        (f"{PLACES[0]}/{ATTEMPTS[0]}/weights", 49, True),
        (f"{PLACES[0]}/{ATTEMPTS[0]}/weights", 47, False),
        ("finished/elsewhere", 49, False),
    ],
)
def test_uploads_that_never_ended_go_when_they_are_old_and_ours(key: str, hours: int, goes: bool) -> None:
    contents = Contents()
    contents.add_upload(UnfinishedUpload(key, "id", NOW - timedelta(hours=hours)))
    found = find_garbage(contents, {}, needs_of((), (), {}, CUTOFF), {}, CUTOFF)
    assert [item.kind for item in found] == ["unfinished upload"] * goes
