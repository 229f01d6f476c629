"""A decision in Markdown: in a job's summary and in a terminal."""

from __future__ import annotations

import io
import re

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from rich.markdown import Markdown

from components.core.evaluation.comparison.decision import Decision, compare
from components.core.evaluation.comparison.markdown import decision_markdown
from components.core.evaluation.table import escaped
from tests.components.core.evaluation.comparison.screens import QUICK, compared, decided, screen_wells

SCREEN = {
    "HUVEC-05": [(26, 26, 26), (26, 26, 24), (26, 26, 26), (26, 26, 26)],
    "RPE-04": [(26, 24, 24), (26, 24, 22), (26, 23, 23), (26, 26, 26)],
}
COMPARED = compared(decided(SCREEN))


def html(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def test_markdown_has_the_decision_its_reason_and_two_tables():
    page = html(decision_markdown(COMPARED))
    assert page.startswith(
        "<h3>Challenger 1a2b3c4d5e6f against champion 9f8e7d6c5b4a: do not promote</h3>\n<p><strong>overall -1.92 (90 % interval"
    )
    assert page.count("<table>") == 2
    assert page.count("<td") == 6 * 8
    assert '<td style="text-align:right">96.63</td>' in page
    assert re.search(r">-[\d.]+\u00a0to\u00a00.00</td>", page), "an interval stays on one line"
    assert page.index("assigned, what users get") < page.index("raw, the networks alone (does not decide)")
    assert "* Fewer than 5 plates" in page


def test_a_terminal_of_80_columns_has_a_line_per_row():
    console = Console(file=io.StringIO(), width=80)
    console.print(Markdown(decision_markdown(COMPARED)))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    for row in COMPARED.comparison.rows:
        cells = [line for line in lines if line[:3] == [row.name, str(row.plates), str(row.wells)]]
        assert len(cells) == 2, "one per stage"
        assert cells[0][3:6] == [f"{100 * row.champion:.2f}", f"{100 * row.challenger:.2f}", "-1.92"]
        assert cells[0][-1] == f"{100 * row.at_least_as_good:.1f}"


def test_the_deciding_stage_comes_first():
    text = decision_markdown(compared(decided(SCREEN, QUICK.model_copy(update={"stage": "raw"}))))
    assert text.index("raw, the networks alone\n") < text.index("assigned, what users get (does not decide)")


def test_unknown_sirnas_and_absent_cell_types_are_noted():
    wells = screen_wells(SCREEN)
    wells["champion_knows"] = [n >= 30 for n in range(len(wells))]
    page = html(decision_markdown(compared(compare(wells, QUICK, cell_types=["HUVEC", "RPE", "U2OS"]))))
    assert "30 of 208 wells hold a siRNA that the champion does not know" in page
    assert re.search(r"Wells of siRNAs that the champion knows \(178\): champion \d", page)
    assert "Not compared, as none of their wells is held out: U2OS." in page


def test_decisions_without_a_comparison_have_a_heading_and_a_reason():
    for outcome, promote in (("first_model", True), ("without_holdout", False), ("same_model", False)):
        found = Decision(outcome=outcome, promote=promote, reason="the reason", challenger="new", champion="old")
        page = html(decision_markdown(found))
        assert page.endswith("</h3>\n<p><strong>the reason</strong></p>\n")
        assert (": promote" in page) is promote


@pytest.mark.parametrize(
    "text",
    ["a|b", "*bold*", "`code`", r"back\slash", "<b>html</b>", "[link](x)", "a_b_c", "~~struck~~", "&amp;", "![x](y)"],
)
def test_names_are_shown_literally(text):
    page = html(f"| a |\n| --- |\n| {escaped(text)} |\n")
    shown = re.search(r"<td>(.*)</td>", page)[1]  # type: ignore[index]
    assert shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text
    assert escaped("two\nlines") == "two lines"
