"""A decision in Markdown: in a job's summary and in a terminal."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from components.core.evaluation.comparison.decision import compare
from components.core.evaluation.comparison.markdown import decision_markdown
from components.core.evaluation.table import escaped
from tests.components.core.evaluation.comparison.screens import QUICK, compared, decided, screen_wells

SCREEN = {
    "HUVEC-05": [(26, 26, 26), (26, 26, 24), (26, 26, 26), (26, 26, 26)],
    "RPE-04": [(26, 24, 24), (26, 24, 22), (26, 23, 23), (26, 26, 26)],
}


def html(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def test_the_decision_and_its_reason_come_first_and_the_table_of_the_deciding_stage_before_the_other():
    for stage, first in (("assigned", "assigned, what users get"), ("raw", "raw, the networks alone")):
        comparison = decided(SCREEN, QUICK.model_copy(update={"stage": stage}))
        page = html(decision_markdown(compared(comparison)))
        assert page.startswith(
            "<h3>Challenger 1a2b3c4d5e6f against champion 9f8e7d6c5b4a: do not promote</h3>\n<p><strong>"
        )
        assert page.index(comparison.reason) < page.index(first) < page.index("(does not decide)")
        assert page.count("<td") == 2 * 3 * 8


def test_unknown_perturbations_and_absent_cell_types_are_noted():
    wells = screen_wells(SCREEN)
    wells["champion_knows"] = [n >= 30 for n in range(len(wells))]
    decision = compared(compare(wells, QUICK, cell_types=["HUVEC", "RPE", "U2OS"]))
    page = html(decision_markdown(decision.model_copy(update={"left_out": ("RPE-09 is left out: the reason",)})))
    assert "30 of 208 wells hold a label that the champion does not know" in page
    assert re.search(r"Wells of labels that the champion knows \(178\): champion \d", page)
    assert "Not compared, as none of their wells is held out: U2OS." in page
    assert "<li>RPE-09 is left out: the reason</li>" in page


@pytest.mark.parametrize(
    "text",
    ["a|b", "*bold*", "`code`", r"back\slash", "<b>html</b>", "[link](x)", "a_b_c", "~~struck~~", "&amp;", "![x](y)"],
)
def test_names_are_shown_literally(text):
    page = html(f"| a |\n| --- |\n| {escaped(text)} |\n")
    shown = re.search(r"<td>(.*)</td>", page)[1]  # type: ignore[index]
    assert shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text
    assert escaped("two\nlines") == "two lines"
