"""check-screen: everything wrong or doubtful in a screen in one pass, a summary, and a configuration to start from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from components.core.config import RunConfig, parse
from components.core.errors import SHOWN, InputError
from components.core.files import write_atomically
from components.core.screen.folds import dealt_wells
from components.core.screen.inspection import Inspection, inspect_screen
from components.core.screen.wells import Screen
from components.core.tables import Finding, as_finding
from pipelines.checks import check_configured, screen_source
from pipelines.options import check_new_file, print_json, print_line

START_FOLDS = (
    *(f"{{count: {count}}}" for count in (5, 4, 3, 2)),
    *(f"{{count: {count}, split: well}}" for count in (5, 4, 3, 2)),
    "{count: 1}",
)
"""Folds of a configuration to start from; the first that fit the screen are taken."""


def run_check_screen(
    screen: str, config: RunConfig | None, write_config: Path | None, console: Console, *, whole: bool, as_json: bool
) -> int:
    """Inspects a screen and prints what was found.

    Args:
        screen: a folder, or its address in a bucket.
        config: what is known of the screen; None for nothing.
        whole: whether it is a run's configuration, which the screen is checked against.
        write_config: receives the configuration to start from.
        console: for people.
        as_json: whether to print JSON on stdout instead.

    Returns:
        The exit code: 2 if a run would refuse the screen.

    Raises:
        InputError: there is no such folder, or the file cannot be written.
    """
    if write_config is not None:
        check_new_file("--write-config", write_config)
    source = screen_source(screen)
    found = inspect_screen(source, (config or RunConfig()).screen, known_cells=whole)
    findings = list(found.findings)
    if found.screen:
        start, refused = _completed(found.config, found.screen)
        if config is not None and whole:
            refused = _refused(config.model_dump(mode="json"), found.screen)
        if refused and not found.wrong:
            findings.insert(0, as_finding(refused))
        findings += _doubts(config or RunConfig(), found.screen)
        found = replace(found, config=start)
    if write_config is not None and found.config:
        write_atomically(write_config, found.config.encode())
    if as_json:
        print_json(
            layout=found.layout,
            errors=[_as_json(finding) for finding in findings if finding.wrong],
            warnings=[_as_json(finding) for finding in findings if not finding.wrong],
            summary=found.summary,
            config=found.config,
        )
    else:
        _print(console, screen, found, findings, write_config)
    return 2 if any(finding.wrong for finding in findings) else 0


def _refused(config: dict[str, Any], screen: Screen) -> InputError | None:
    """Why a run by a configuration, as plain data, would refuse the tables of a screen; None if it would not."""
    try:
        check_configured(parse(RunConfig, config, source="configuration"), screen, None)
    except InputError as error:
        return error
    return None


def _completed(start: str, screen: Screen) -> tuple[str, InputError | None]:
    """The configuration to start from with standardisation and the first folds that fit; why a run by it would be refused."""
    if _plates_of_one_label(screen):
        start += "standardise: {domain: image}  # some plates hold one label only\n"
    for folds in START_FOLDS:
        remark = "; scores of held-out wells do not tell of new experiments" if "well" in folds else ""
        text = f"{start}folds: {folds}  # count 1 learns all labels, but gives no out-of-fold scores{remark}\n"
        # A preset has no part in what is checked.
        data = {name: value for name, value in yaml.safe_load(text).items() if name != "extends"}
        refused = _refused(data, screen)
        if refused is None:
            break
    return text, refused


def _doubts(config: RunConfig, screen: Screen) -> list[Finding]:
    """What training by a configuration would suffer from in a screen."""
    found = []
    wells = Counter(well.perturbation for well in dealt_wells(screen.training_plates))
    single = tuple(label for label in screen.vocabulary.treatments if wells[label] == 1)
    if single and config.folds.count > 1:
        what = (
            "labels of a single labelled well: the fold that holds it out cannot learn the label, so no score counts it"
        )
        found.append(Finding(False, f"{what}; add wells", single))
    if (config.standardise.domain, config.standardise.wells) == ("plate", "all"):
        what = "plates of a single label: the statistics of all wells of a plate hide what it does; set standardise.domain to image"
        plates = _plates_of_one_label(screen)
        found += [Finding(False, what, plates)] if plates else []
    return found


def _plates_of_one_label(screen: Screen) -> tuple[str, ...]:
    """The plates whose treatment wells all have the same label."""
    labels = {
        plate.name: {well.perturbation for well in plate.wells if well.role == "treatment"} for plate in screen.plates
    }
    return tuple(name for name, own in labels.items() if len(own) == 1 and None not in own)


def _as_json(finding: Finding) -> dict[str, Any]:
    return {"what": finding.what, "count": max(1, len(finding.places)), "first": list(finding.places[:SHOWN])}


def _print(
    console: Console, screen: str, found: Inspection, findings: list[Finding], write_config: Path | None
) -> None:
    line = partial(print_line, console)
    line(f"{screen}: layout {found.layout or 'unknown'}")
    for wrong, title in ((True, "wrong"), (False, "doubtful")):
        chosen = [finding for finding in findings if finding.wrong == wrong]
        if chosen:
            line(f"\n{title}:")
        for finding in chosen:
            line(f"  {finding.what}" + (f" ({len(finding.places)})" if len(finding.places) > 1 else ""))
            for place in finding.places[:SHOWN]:
                line(f"    {place}")
            if len(finding.places) > SHOWN:
                line(f"    and {len(finding.places) - SHOWN} more")
    if found.summary:
        line("\nsummary:")
        for name, value in found.summary.items():
            line(f"  {name.replace('_', ' '):20} {_shown(value)}")
    if not any(finding.wrong for finding in findings):
        line("\nnothing wrong was found")
    if found.config and write_config is None:
        line("\na configuration to start from (--write-config FILE writes it):\n")
        line(found.config)
    elif found.config:
        line(f"\nwrote {write_config}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    if isinstance(value, list):
        texts = [" x ".join(map(str, each)) if isinstance(each, list) else str(each) for each in value]
        return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "") if texts else "-"
    return f"{value:,}" if isinstance(value, int) else str(value)
