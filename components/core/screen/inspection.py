"""What check-screen reports: everything wrong or doubtful in a screen, a summary, and a configuration to start from.

A run makes the same checks before it starts. They read tables and names, then some images. Reads through ScreenSource.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import yaml

from components.core.config import CHANNELS, ScreenConfig
from components.core.errors import InputError, one_line
from components.core.screen.layouts import chosen_layout, read_rows, read_screen
from components.core.screen.layouts.checks import make_screen
from components.core.screen.plane_header import BadImageError, PlaneHeader, bits, pixels
from components.core.screen.planes import Content, checksums, decode_plane, plane_header
from components.core.screen.screen_source import ScreenSource, UnreadableError
from components.core.screen.wells import Plane, Plate, Screen, natural_key, plate_shape
from components.core.screen.zarr_images import ABSENT_CHUNKS, count_chunks, is_zarr, read_zarr_planes
from components.core.tables import Finding, as_finding

SITES, REMOTE_SITES = 64, 8
"""Sites that are looked at, in folders and in buckets, where whole files travel: of as many plates at most; packing reads all."""
_READERS = 8
"""Images that are looked at in parallel."""
_WORDS = {"sirna": "siRNA", "compound": "compound", "drug": "compound", "guide": "guide", "gene": "gene"}
"""The word for perturbations by a part of the name of their column."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a screen."""

    layout: str  # its name; empty if there is none
    findings: tuple[Finding, ...]  # what is wrong first, then what is doubtful
    screen: Screen | None = None  # its tables; None if they cannot be read
    summary: dict[str, Any] = field(default_factory=dict)  # numbers and names, for people and as JSON
    config: str = ""  # a configuration to start from but for its folds, YAML; empty if the screen cannot be read

    @property
    def wrong(self) -> bool:
        """Whether a run would refuse the screen."""
        return any(finding.wrong for finding in self.findings)


def checked_screen(source: ScreenSource, form: ScreenConfig) -> Screen:
    """The tables of a screen, if nothing is wrong with them or with the images that check-screen looks at.

    Args:
        source: the screen.
        form: what the configuration says of it.

    Raises:
        InputError: everything that is wrong with a table, or else with labels and images, in one line.
    """
    screen = read_screen(source, form)
    found, _ = _images(source, screen, form)
    findings = [*_labels(screen), *found]
    if wrong := [str(finding) for finding in findings if finding.wrong]:
        raise InputError(f"{source.address()}: {one_line(wrong)}")
    return screen


def inspect_screen(source: ScreenSource, form: ScreenConfig, known_cells: bool = True) -> Inspection:
    """Inspects a screen.

    Nothing that is wrong with it is raised; InputError if there is no folder, or a store that cannot be used.

    Args:
        source: the screen.
        form: what the configuration says of it.
        known_cells: whether its cell types are those of the screen; else any are expected.
    """
    source.check()
    try:
        reading, rows = read_rows(source, form, form.cell_types if known_cells else None)
    except InputError as error:
        return Inspection(_layout_name(source, form), (as_finding(error),))
    screen = make_screen(reading, rows, frozenset(form.holdout_experiments))
    said = [finding for faults in reading.faults for finding in faults.findings()] + reading.findings
    found, headers = _images(source, screen, form)
    explained = reading.missing or not screen.vocabulary.treatments
    if not (explained and any(finding.wrong for finding in said)):
        found = [*_labels(screen), *found]
    ordered = sorted([*said, *found], key=lambda finding: not finding.wrong)
    start = _starting_config(source, screen, form, reading.layout, headers, rows.fields.get("perturbation", ""))
    return Inspection(reading.layout, tuple(ordered), screen, _summary(screen, headers), start)


def _layout_name(source: ScreenSource, config: ScreenConfig) -> str:
    try:
        return chosen_layout(source, config).name
    except InputError:
        return ""


def _labels(screen: Screen) -> list[Finding]:
    """A finding if there are too few labels to train on."""
    findings = []
    labels = screen.vocabulary.treatments
    if len(labels) < 2:
        found = f"one label, {labels[0]}" if labels else "no labelled treatment"
        findings.append(Finding(True, f"the screen has {found}: at least two labels are needed to train on"))
    return findings


@dataclass(slots=True)
class _Headers:
    """What the headers of some images say."""

    read: int = 0
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    largest: int = 0


def _images(source: ScreenSource, screen: Screen, form: ScreenConfig) -> tuple[list[Finding], _Headers]:
    """Reads images of some sites, and decodes them."""
    headers, findings = _Headers(), []
    bad: list[str] = []
    partial: list[str] = []
    chunks = np.zeros(2, int)
    odd: dict[str, list[str]] = {}
    first: dict[str, tuple[int, int] | str] = {} if form.image_size is None else {"size": form.image_shape}
    chosen = _some_planes(source, screen)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="look") as pool:
        looked = pool.map(lambda plane: _look(source, plane), (plane for plane, _ in chosen))
        for (plane, where), found in zip(chosen, looked, strict=True):
            name = f"{source.address(plane.path)}: {where}"
            if isinstance(found, str):
                bad.append(f"{name}: {found}")
                continue
            header, largest, of_plane = found
            headers.read += 1
            chunks += of_plane
            partial += [name] if of_plane[0] else []
            headers.shapes[header.shape] += 1
            headers.dtypes[header.dtype] += 1
            headers.largest = max(headers.largest, largest)
            for what, value in (("size", header.shape), ("bit depth", header.dtype)):
                if first.setdefault(what, value) != value:
                    shown = pixels(header.shape) if what == "size" else f"{bits(header.dtype)} bit"
                    odd.setdefault(what, []).append(f"{name}: {shown}")
    if bad:
        findings.append(Finding(True, "images that cannot be read", tuple(bad)))
    if partial:
        findings.append(Finding(False, f"of some images read, {ABSENT_CHUNKS.format(*chunks)}", tuple(partial)))
    for what, places in odd.items():
        usual = first[what]
        said = pixels(usual) if isinstance(usual, tuple) else f"{usual}"
        said += " (screen.image_size)" if what == "size" and form.image_size is not None else ""
        findings.append(Finding(True, f"images of another {what} than {said}: a screen has one", tuple(places)))
    for shape in headers.shapes:
        try:
            form.input_side_of(shape)
        except ValueError as error:
            findings.append(Finding(True, f"screen.{error}; lower screen.crop or screen.bin"))
            break
    if headers.dtypes.get("uint16") and 255 < headers.largest < 1 << 14:
        depth = max(headers.largest.bit_length(), 10)
        findings.append(
            Finding(False, f"16-bit files hold {depth}-bit data: the largest value read is {headers.largest}")
        )
    return findings, headers


def _look(source: ScreenSource, plane: Plane) -> tuple[PlaneHeader, int, tuple[int, int]] | str:
    """A plane's header, its largest value and `count_chunks`, or why it cannot be read. What packing would refuse is refused."""
    try:
        if is_zarr(plane.path):
            content: Content = read_zarr_planes(source, [plane])[0]
        else:
            content = source.read_many([plane.path])[0]
        checksums(content)  # which notices a file that is cut anywhere
        header = plane_header(content)
        image_HW = np.empty(header.shape, header.dtype)
        decode_plane(content, plane.index, image_HW, plane.file)
        return header, int(image_HW.max()), count_chunks([content])
    except UnreadableError as error:
        return error.reason
    except BadImageError as error:
        return str(error)


def _some_planes(source: ScreenSource, screen: Screen) -> list[tuple[Plane, str]]:
    """Planes of some sites, evenly spread over plates and the sites of each, and what they are of."""
    remote = any("://" in source.address(path) for path in _first_paths(screen.plates))
    most, count = REMOTE_SITES if remote else SITES, len(screen.plates)
    found = []
    for plate in [screen.plates[k * count // min(count, most)] for k in range(min(count, most))]:
        sites = [(well.well, site) for well in plate.wells for site in well.sites]
        each = min(max(1, most // count), len(sites))
        for n in range(each):
            well, site = sites[n * len(sites) // each]
            for number, (channel, planes) in enumerate(zip(screen.channels, site.channels, strict=True), start=1):
                found += [
                    (plane, f"channel {number} ({channel}) of well {well}, site {site.site}") for plane in planes[:1]
                ]
    return found


def _first_paths(plates: Sequence[Plate]) -> Iterator[str]:
    """The path of the first image of each plate."""
    for plate in plates:
        sites = (site for well in plate.wells for site in well.sites)
        yield from (planes[0].path for site in islice(sites, 1) for planes in site.channels[:1] if planes)


def _cell_types(screen: Screen) -> list[str]:
    """The screen's cell types; one that is unknown is among the findings."""
    return sorted({plate.cell_type for plate in screen.plates if plate.cell_type}, key=natural_key)


def _summary(screen: Screen, headers: _Headers) -> dict[str, Any]:
    wells = [(plate, well) for plate in screen.plates for well in plate.wells]
    treated = Counter(well.perturbation for _, well in wells if well.role == "treatment" and well.perturbation)
    sites = [len(well.sites) for _, well in wells] or [0]
    controls = [sum(well.role != "treatment" for well in plate.wells) for plate in screen.plates] or [0]
    counts = sorted(treated.values()) or [0]
    rows, columns = plate_shape([well.well for _, well in wells])
    return {
        "experiments": len({plate.experiment for plate in screen.plates}),
        "plates": len(screen.plates),
        "plate_format": rows * columns,
        "wells": len(wells),
        "treatment_wells": sum(well.role == "treatment" for _, well in wells),
        "unlabelled_wells": sum(well.role == "treatment" and well.perturbation is None for _, well in wells),
        "labels": len(treated),
        "wells_per_label": {"least": counts[0], "median": median(counts), "most": counts[-1]},
        "positive_controls": list(screen.vocabulary.positives),
        "negative_controls": list(screen.vocabulary.negatives),
        "controls_per_plate": {"least": min(controls), "most": max(controls)},
        "sites": sum(sites),
        "sites_per_well": {"least": min(sites), "most": max(sites)},
        "cell_types": _cell_types(screen),
        "channels": list(screen.channels),
        "image_sizes": [list(shape) for shape in headers.shapes],
        "pixel_types": list(headers.dtypes),
        "largest_value": headers.largest,
        "images_read": headers.read,
        "own_columns": list(screen.columns),
        "tables": list(screen.tables),
    }


CPU_PIXELS = 128
"""Images up to this side are small enough for training on CPUs."""


def _starting_config(
    source: ScreenSource, screen: Screen, config: ScreenConfig, layout: str, headers: _Headers, column: str
) -> str:
    """A configuration for the screen, YAML with comments; what it leaves out keeps its default.

    `column` is the name of the labels' column, which may say what they are.
    """
    section: dict[str, Any] = {"layout": layout, **config.model_dump(mode="json", exclude_defaults=True)}
    section["cell_types"] = _cell_types(screen) or ["cells"]
    if screen.channels != CHANNELS:
        section["channels"] = list(screen.channels)
    if headers.shapes:
        height, width = headers.shapes.most_common(1)[0][0]
        section["image_size"] = height if height == width else [height, width]
    if config.perturbation_name == ScreenConfig().perturbation_name:
        word = next((word for part, word in _WORDS.items() if part in column.lower()), "perturbation")
        if word != config.perturbation_name:
            section["perturbation_name"] = word
    name = re.sub(r"[^A-Za-z0-9]+", "-", source.address().rstrip("/").rpartition("/")[2]).strip("-")[:30] or "screen"
    parts = ["# Written by cellsignal check-screen; docs/configuration.md lists all fields.\n"]
    parts.append(yaml.safe_dump({"name": name}, sort_keys=False))
    preset = "# extends: gpu-1h  # about an hour of one GPU"
    if headers.shapes and min(headers.shapes.most_common(1)[0][0]) <= CPU_PIXELS:
        preset = "extends: cpu-small  # minutes on CPUs"
    parts.append(f"{preset}; without this line, the published networks and schedule, days on GPUs\n")
    parts.append(yaml.safe_dump({"screen": section}, sort_keys=False, default_flow_style=None, width=120))
    return "".join(parts)
