"""What a retraining tells: lines in the terminal, comparison.json and comparison.md in its folder, and a job's summary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from components.core.errors import ContactError, InputError, StepError
from components.core.evaluation.comparison.decision import Decision
from components.core.evaluation.comparison.markdown import decision_markdown, escaped
from components.core.files import write_atomically
from components.core.registry.champion import Champion
from components.core.registry.model_manifest import SHORT
from pipelines.retraining.holdout import Comparable
from pipelines.retraining.order import Order
from pipelines.retraining.records import Outcome


@dataclass(frozen=True)
class Telling:
    """Tells.

    Attributes:
        console: for whoever watches.
        summary: Markdown file that is added to; None for none.
    """

    console: Console
    summary: Path | None = None

    def say(self, line: str) -> None:
        """A line in the terminal."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """A line that should be looked at."""
        self.console.print(f"warning: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Adds to the summary what ends this block."""
        try:
            yield
        except (InputError, StepError, ContactError) as error:
            heading = "Contact lost" if isinstance(error, ContactError) else "Retraining failed"
            self._add(f"### {heading}\n\n{escaped(' '.join(str(error).split()))}\n")
            raise

    def unchanged(self, latest: Outcome, champion: Champion | None) -> None:
        """Nothing is started."""
        line = (
            f"nothing has changed since {latest.at:%Y-%m-%d %H:%M} UTC: data, code and configuration are those of run "
            f"{latest.run}, whose model {latest.model[:SHORT]} "
        )
        if champion is not None and champion.now.fingerprint == latest.model:
            line += f"is the champion ({champion.now.why})"
        elif not latest.promoted:
            line += f"was not promoted ({latest.reason}); --again decides again, as after another promotion.margin"
        elif champion is not None:
            now = champion.now
            line += f"was promoted; {now.by} has promoted {now.fingerprint[:SHORT]} since ({now.why}); --again decides again"
        else:
            line += f"was promoted ({latest.reason}), but there is no champion any more; --again decides again"
        self.say(line)
        self._add(f"### Nothing to retrain\n\n{escaped(line)}\n")

    def changed(self, clauses: Sequence[str] | None, short: str) -> None:
        """Why something is started."""
        if clauses is None:
            self.say(f"fingerprint {short}: nothing was retrained before under this name")
        elif clauses:
            self.say(f"fingerprint {short}, changed since the last retraining: {'; '.join(clauses)}")
        else:
            self.say(f"fingerprint {short}: nothing has changed, and it is decided again")

    def plan(self, order: Order, champion: Champion | None, found: Comparable, working: str) -> None:
        """What would be done.

        Args:
            order: of this retraining.
            champion: of this moment.
            found: what the challenger would be compared on.
            working: who is at the same; empty where nobody is known to be.
        """
        where = f"at {order.endpoint}" if order.endpoint else "on this machine"
        lines = [f"would train a challenger {where}"]
        if working:
            lines = [f"would follow {working}, who retrains the same"]
        if champion is None:
            lines.append("there is no champion yet, so that it would be promoted as the first model")
        elif found.experiments:
            lines.append(
                f"would compare it with champion {champion.now.fingerprint[:SHORT]} on {', '.join(found.experiments)}"
            )
        else:
            lines.append("would promote it without a comparison (--allow-no-holdout)")
        lines += found.remarks
        for line in lines:
            self.say(line)
        self.say("nothing was started (--dry-run)")
        self._add("### Retraining, dry run\n\n" + "".join(f"- {escaped(line)}\n" for line in lines))

    def followed(self, outcome: Outcome) -> None:
        """How the one that was followed ended."""
        what = "is the champion" if outcome.promoted else "was not promoted"
        line = f"model {outcome.model[:SHORT]} of run {outcome.run} {what}: {outcome.reason}"
        self.say(line)
        self._add(f"### Followed a retraining of the same\n\n{escaped(line)}\n")

    def decided(self, decision: Decision, outcome: Outcome, remarks: Sequence[str], folder: Path) -> None:
        """The decision, with the table.

        Raises:
            StepError: a file cannot be written; the decision stands.
        """
        self.console.print(Markdown(decision_markdown(decision)))
        for remark in remarks:
            self.say(remark)
        if outcome.promoted:
            self.say(f"model {outcome.model[:SHORT]} is the champion, generation {outcome.generation}")
        else:
            if decision.promote:
                self.say(f"not promoted all the same: {outcome.reason}")
            self.say(f"model {outcome.model[:SHORT]} is published and not promoted; the champion stays")
        text = decision_markdown(decision) + "".join(f"\n- {escaped(remark)}" for remark in remarks)
        if decision.promote and not outcome.promoted:
            text += f"\n\n**Not promoted all the same: {escaped(outcome.reason)}**"
        text += f"\n\nRun `{outcome.run}`, model `{outcome.model[:SHORT]}`, generation {outcome.generation}.\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "comparison.json", decision.model_dump_json(indent=1) + "\n")
            write_atomically(folder / "comparison.md", text)
        except OSError as error:
            raise StepError(f"{folder}: cannot be written ({error.strerror}); the decision stands") from None
        self.say(f"report: {(folder / 'challenger' / 'report.html').resolve()}")
        self.say(f"comparison: {(folder / 'comparison.md').resolve()}")
        self._add(text)

    def _add(self, markdown: str) -> None:
        if self.summary is None:
            return
        try:
            with self.summary.open("a", encoding="utf-8") as file:
                file.write(f"{markdown}\n")
        except OSError as error:
            self.say(f"--summary {self.summary}: cannot be written ({error.strerror})")
