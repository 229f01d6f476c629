"""What check-screen reports: everything wrong or doubtful in a screen, a summary, and a configuration to start from.

Reads tables and names like a run, then the headers of some images of every plate. Reads through ScreenSource.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import yaml

from components.core.config import CHANNELS, ScreenConfig
from components.core.errors import InputError
from components.core.screen.layouts import chosen_layout, read_rows
from components.core.screen.layouts.checks import make_screen
from components.core.screen.plane_header import BadImageError, bits, pixels
from components.core.screen.planes import Content, checksums, decode_plane, plane_header
from components.core.screen.screen_source import ScreenSource, UnreadableError
from components.core.screen.wells import Plane, Plate, Screen, natural_key, plate_shape
from components.core.screen.zarr_images import is_zarr, read_zarr_planes
from components.core.tables import Finding

SITES = 64
"""Sites whose headers are read, spread over the plates; packing reads those of all."""
_WORDS = (("sirna", "siRNA"), ("compound", "compound"), ("drug", "compound"), ("guide", "guide"), ("gene", "gene"))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a screen.

    Attributes:
        layout: its name; empty if there is none.
        findings: what is wrong first, then what is doubtful.
        summary: numbers and names, for people and as JSON.
        config: a configuration to start from, YAML; empty if the screen cannot be read.
    """

    layout: str
    findings: tuple[Finding, ...]
    summary: dict[str, Any] = field(default_factory=dict)
    config: str = ""

    @property
    def wrong(self) -> bool:
        """Whether a run would refuse the screen."""
        return any(finding.wrong for finding in self.findings)


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
        return Inspection(_layout_name(source, form), (Finding(True, str(error)),))
    findings = [finding for faults in reading.faults for finding in faults.findings()] + reading.findings
    screen = make_screen(reading, rows, frozenset(form.holdout_experiments))
    found, headers = _images(source, screen)
    findings += [*_labels(screen), *found]
    ordered = tuple(sorted(findings, key=lambda finding: not finding.wrong))
    word = next((each for part, each in _WORDS if part in rows.fields.get("perturbation", "").lower()), "perturbation")
    start = _starting_config(source, screen, form, reading.layout, headers, word)
    return Inspection(reading.layout, ordered, _summary(screen, headers), start)


def _layout_name(source: ScreenSource, config: ScreenConfig) -> str:
    try:
        return chosen_layout(source, config).name
    except InputError:
        return ""


def _labels(screen: Screen) -> list[Finding]:
    """Findings on labels and controls."""
    findings = []
    labels = screen.vocabulary.treatments
    if len(labels) < 2:
        found = f"one label, {labels[0]}" if labels else "no labelled treatment"
        findings.append(Finding(True, f"the screen has {found}: at least two labels are needed to train on"))
    bare = [plate.name for plate in screen.plates if all(well.role == "treatment" for well in plate.wells)]
    if bare:
        what = "plates without control wells: statistics must come from all wells (standardise.wells)"
        findings.append(Finding(False, what, tuple(bare)))
    one = [
        plate.name
        for plate in screen.plates
        if len({well.perturbation for well in plate.wells if well.perturbation and well.role == "treatment"}) == 1
    ]
    if one:
        what = (
            "plates of a single perturbation: statistics of all wells of a plate hide what it does (standardise.domain)"
        )
        findings.append(Finding(False, what, tuple(one)))
    return findings


@dataclass(slots=True)
class _Headers:
    """What the headers of some images say."""

    read: int = 0
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    largest: int = 0


def _images(source: ScreenSource, screen: Screen) -> tuple[list[Finding], _Headers]:
    """Reads the headers, and pixels, of some sites of every plate."""
    headers, findings = _Headers(), []
    bad: list[str] = []
    odd: dict[str, list[str]] = {}
    first: dict[str, tuple[int, int] | str] = {}
    for plate, planes in _some_sites(screen.plates):
        for plane in planes:
            name = source.address(plane.path)
            try:
                content = _content(source, plane)
                header = plane_header(content)
                image_HW = np.empty(header.shape, header.dtype)
                checksums(content)
                decode_plane(content, plane.index, image_HW, plane.file)
            except (BadImageError, UnreadableError) as error:
                bad.append(f"{name}: {getattr(error, 'reason', error)}")
                continue
            headers.read += 1
            headers.shapes[header.shape] += 1
            headers.dtypes[header.dtype] += 1
            headers.largest = max(headers.largest, int(image_HW.max()))
            for what, value in (("size", header.shape), ("bit depth", header.dtype)):
                if first.setdefault(what, value) != value:
                    shown = pixels(header.shape) if what == "size" else f"{bits(header.dtype)} bit"
                    odd.setdefault(what, []).append(f"{name} ({plate.name}): {shown}")
    if bad:
        findings.append(Finding(True, "images that cannot be read", tuple(bad)))
    for what, places in odd.items():
        usual = first[what]
        said = pixels(usual) if isinstance(usual, tuple) else f"{usual}"
        findings.append(Finding(True, f"images of another {what} than {said}: a screen has one", tuple(places)))
    if headers.dtypes.get("uint16") and 255 < headers.largest < 1 << 14:
        depth = max(headers.largest.bit_length(), 10)
        findings.append(
            Finding(False, f"16-bit files hold {depth}-bit data: the largest value read is {headers.largest}")
        )
    return findings, headers


def _content(source: ScreenSource, plane: Plane) -> Content:
    if is_zarr(plane.path):
        return read_zarr_planes(source, [(plane.path, plane.index)])[0]
    return source.read_many([plane.path])[0]


def _some_sites(plates: Sequence[Plate]) -> Iterable[tuple[Plate, list[Plane]]]:
    """Planes of some sites, evenly spread over each plate's."""
    each = max(1, SITES // max(1, len(plates)))
    for plate in plates:
        sites = [site for well in plate.wells for site in well.sites]
        for n in range(min(each, len(sites))):
            site = sites[n * len(sites) // min(each, len(sites))]
            yield plate, [planes[0] for planes in site.channels if planes]


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


def _starting_config(
    source: ScreenSource, screen: Screen, config: ScreenConfig, layout: str, headers: _Headers, word: str
) -> str:
    """A configuration for the screen, YAML with comments; what it leaves out keeps its default."""
    section: dict[str, Any] = {"layout": layout, **config.model_dump(mode="json", exclude_defaults=True)}
    section["cell_types"] = _cell_types(screen) or ["cells"]
    if screen.channels != CHANNELS:
        section["channels"] = list(screen.channels)
    if headers.shapes:
        height, width = headers.shapes.most_common(1)[0][0]
        section["image_size"] = height if height == width else [height, width]
    if word != "siRNA":
        section["perturbation_name"] = word
    labelled = len({plate.experiment for plate in screen.training_plates})
    name = re.sub(r"[^A-Za-z0-9]+", "-", source.address().rstrip("/").rpartition("/")[2]).strip("-")[:30] or "screen"
    parts = ["# Written by cellsignal check-screen; docs/configuration.md lists all fields.\n"]
    parts.append(yaml.safe_dump({"name": name}, sort_keys=False))
    parts.append(yaml.safe_dump({"screen": section}, sort_keys=False, default_flow_style=None, width=120))
    if 1 < labelled < 5:
        parts.append(f"folds: {{count: {labelled}}}  # one for each labelled experiment\n")
    return "".join(parts)
