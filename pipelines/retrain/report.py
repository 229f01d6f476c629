"""The report of a retraining: lines in the terminal, comparison.json and comparison.md in its folder, and a CI job's summary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from components.core.errors import ContactError, InputError, StepError
from components.core.evaluation.comparison.decision import Decision
from components.core.evaluation.comparison.markdown import decision_markdown
from components.core.evaluation.table import escaped
from components.core.files import write_atomically
from components.core.registry.champion import Champion
from components.core.registry.model_manifest import SHORT, ModelManifest
from pipelines.options import check_new_file, print_line
from pipelines.retrain.challenge import Comparable
from pipelines.retrain.records import RetrainingOutcome


@dataclass(frozen=True)
class RetrainReporter:
    """Reports a retraining in the terminal, and in a Markdown file to which it appends."""

    console: Console
    summary: Path | None = None

    def say(self, line: str) -> None:
        """Prints a line."""
        print_line(self.console, line)

    def warn(self, line: str) -> None:
        """Prints a warning."""
        print_line(self.console, f"warning: {line}", "yellow")

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Appends an error that ends this block to the summary; InputError if that cannot be a file."""
        if self.summary:
            check_new_file("--summary", self.summary)
        try:
            yield
        except (InputError, StepError, ContactError, OSError) as error:
            heading = "Contact lost" if isinstance(error, ContactError) else "Retraining failed"
            self._append(f"### {heading}", escaped(str(error)))
            raise

    def unchanged(self, latest: RetrainingOutcome, champion: Champion | None) -> None:
        """Nothing has changed, so nothing is started."""
        now = champion.now if champion else None
        if now and now.fingerprint == latest.model:
            state = f"is the champion ({now.why})"
        elif now and latest.promoted:
            state = f"was promoted; {now.by} has promoted {now.fingerprint[:SHORT]} since ({now.why}); --again decides again"
        else:
            state = f"was not promoted ({latest.reason}); --again decides again, for example after changing promotion.margin"
        line = (
            f"nothing has changed since {latest.at:%Y-%m-%d %H:%M} UTC: data, code and configuration are those of run "
            f"{latest.run}, whose model {latest.model[:SHORT]} {state}"
        )
        self._report("Nothing to retrain", line)

    def changed(self, clauses: Sequence[str] | None, digest: str) -> None:
        """The reason for a retraining."""
        if clauses is None:
            why = "nothing was retrained before under this name"
        elif clauses:
            why = f"changed since the last retraining: {'; '.join(clauses)}"
        else:
            why = "nothing has changed; deciding again"
        self.say(f"fingerprint {digest[:SHORT]}: {why}")

    def plan(self, endpoint: str, champion: ModelManifest | None, found: Comparable) -> None:
        """What would be done."""
        if champion is None:
            then = "there is no champion yet, so it would be promoted as the first model"
        elif found.experiments:
            then = f"would compare it with champion {champion.short} on {', '.join(found.experiments)}"
        else:
            then = "would promote it without a comparison (--allow-no-holdout)"
        where = f"at {endpoint}" if endpoint else "on this machine"
        nothing = "nothing was started (--dry-run)"
        self._report("Retraining, dry run", f"would train a challenger {where}", then, *found.remarks, nothing)

    def followed(self, outcome: RetrainingOutcome) -> None:
        """The outcome of the same retraining by another process."""
        what = "is the champion" if outcome.promoted else "was not promoted"
        line = f"model {outcome.model[:SHORT]} of run {outcome.run} {what}: {outcome.reason}"
        self._report("Retrained by another process", line)

    def decided(self, decision: Decision, outcome: RetrainingOutcome, folder: Path) -> None:
        """The decision, with its comparison.

        Raises:
            StepError: a file cannot be written; the decision stands.
        """
        text = decision_markdown(decision)
        if decision.promote and not outcome.promoted:
            text += f"\n\n**Not promoted: {escaped(outcome.reason)}**"
        after = "is the champion" if outcome.promoted else "is published and not promoted; the champion stays"
        text += f"\n\nModel `{outcome.model[:SHORT]}` {after}: run `{outcome.run}`, generation {outcome.generation}."
        self.console.print(Markdown(text))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "comparison.json", decision.model_dump_json(indent=1) + "\n")
            write_atomically(folder / "comparison.md", f"{text}\n")
        except OSError as error:
            raise StepError(f"{folder}: cannot be written ({error.strerror}); the decision stands") from None
        self.say(f"report: {(folder / 'challenger' / 'report.html').resolve()}")
        self.say(f"comparison: {(folder / 'comparison.md').resolve()}")
        self._append(text)

    def _report(self, heading: str, *lines: str) -> None:
        """Prints lines, and appends them to the summary."""
        for line in lines:
            self.say(line)
        self._append(f"### {heading}", *map(escaped, lines))

    def _append(self, *paragraphs: str) -> None:
        if self.summary is None:
            return
        try:
            with self.summary.open("a", encoding="utf-8") as file:
                file.write("\n\n".join(paragraphs) + "\n\n")
        except OSError as error:
            self.say(f"--summary {self.summary}: cannot be written ({error.strerror})")
