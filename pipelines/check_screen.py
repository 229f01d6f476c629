"""check-screen: everything wrong or doubtful in a screen in one pass, a summary, and a configuration to start from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import SHOWN, InputError
from components.core.files import write_atomically
from components.core.screen.inspection import Inspection, inspect_screen
from components.core.tables import Finding, as_finding
from pipelines.checks import check_configured, screen_source
from pipelines.options import check_new_file, print_json, print_line


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
    if config is not None and whole and found.screen and not found.wrong:
        try:
            check_configured(config, found.screen, None)
        except InputError as error:
            findings.insert(0, as_finding(error))
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
