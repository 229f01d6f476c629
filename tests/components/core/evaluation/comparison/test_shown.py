"""A decision as people see it: in a terminal, and in a job's summary."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from pydantic import ValidationError
from rich.console import Console

from components.core.evaluation.comparison import decision as decisions
from components.core.evaluation.comparison.comparing import compare
from components.core.evaluation.comparison.decision import Decision
from components.core.evaluation.comparison.markdown import comparison_markdown, escaped
from components.core.evaluation.comparison.terminal import comparison_table
from tests.components.core.evaluation.comparison.compared import QUICK, decided, screen_wells

SCREEN = {
    "HUVEC-05": [(26, 26, 26), (26, 26, 24), (26, 26, 26), (26, 26, 26)],
    "RPE-04": [(26, 24, 24), (26, 24, 22), (26, 23, 23), (26, 26, 26)],
}
COMPARED = decisions.compared(decided(SCREEN), "1a2b3c4d5e6f", "9f8e7d6c5b4a")
OTHERS = {
    "first_model": decisions.first_model("1a2b3c4d5e6f"),
    "without_holdout": decisions.without_holdout("no experiment is held out", False, "1a2b3c4d5e6f", "9f8e7d6c5b4a"),
    "allowed": decisions.without_holdout("no experiment is held out", True, "1a2b3c4d5e6f", "9f8e7d6c5b4a"),
    "same_model": decisions.same_model("9f8e7d6c5b4a"),
}


def terminal(decision: Decision, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(decision))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def html(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def test_every_row_is_on_a_line_of_its_own_in_80_columns():
    lines = [line.split() for line in terminal(COMPARED)]
    heads = [line for line in lines if "champion" in line and "challenger" in line and "plates" in line]
    assert (
        heads == [["plates", "wells", "champion", "challenger", "difference", "90", "%", "interval", "as", "good"]] * 2
    )
    for name, row in zip(("overall", "HUVEC", "RPE"), COMPARED.comparison.rows, strict=True):
        cells = [line for line in lines if line[:1] == [name] and line[1] == str(row.plates)]
        few = "" if name == "overall" else "*"
        low, high = (f"{100 * bound:+.2f}" if bound else "0.00" for bound in (row.low, row.high))
        assert cells[0] == [
            name, str(row.plates), str(row.wells), f"{100 * row.champion:.2f}", f"{100 * row.challenger:.2f}", "-1.92",
            low, "to", f"{high}{few}", f"{100 * row.at_least_as_good:.1f}",
        ]  # fmt: skip
        assert len(cells) == 2, "the other stage's rows too"


def test_what_was_decided_stands_first_and_notes_follow():
    text = " ".join(" ".join(terminal(COMPARED)).split())
    assert text.startswith(
        "Challenger 1a2b3c4d5e6f against champion 9f8e7d6c5b4a: do not promote overall -1.92 (90 % interval "
    )
    assert "HUVEC-05, RPE-04" in text
    assert "not how another experiment would" in text
    assert "* Fewer than 5 plates" in text
    assert "raw, the networks alone (decides nothing)" in text
    assert "does not know" not in text
    assert "Not compared" not in text


def test_unknown_sirnas_and_absent_cell_types_are_told():
    wells = [replace(well, champion_knows=n >= 30) for n, well in enumerate(screen_wells(SCREEN))]
    found = decisions.compared(compare(wells, QUICK, cell_types=["HUVEC", "RPE", "U2OS"]), "new", "old")
    for text in (" ".join(" ".join(terminal(found)).split()), html(comparison_markdown(found))):
        assert "30 of 208 wells hold a siRNA that the champion does not know; they count as wrong for it" in text
        assert re.search(r"Wells of siRNAs that the champion knows \(178\): champion \d", text)
        assert "Not compared, as none of their wells is held out: U2OS." in text


def test_the_markdown_is_a_heading_a_reason_and_two_tables():
    text = comparison_markdown(COMPARED)
    page = html(text)
    assert page.startswith(
        "<h3>Challenger 1a2b3c4d5e6f against champion 9f8e7d6c5b4a: do not promote</h3>\n<p><strong>overall -1.92 (90 % interval"
    )
    assert page.count("<table>") == 2
    assert page.count("<tr>") == 8
    assert page.count("<td") == 6 * 8
    assert '<td style="text-align:right">96.63</td>' in page
    assert re.search(r">-[\d.]+\u00a0to\u00a00.00</td>", page), "an interval stays on one line"
    assert page.index("assigned, what users get") < page.index("raw, the networks alone")
    assert "* Fewer than 5 plates" in page


def test_the_stage_that_decides_comes_first():
    raw = decisions.compared(decided(SCREEN, QUICK.model_copy(update={"stage": "raw"})), "new", "old")
    page = comparison_markdown(raw)
    assert page.index("raw, the networks alone\n") < page.index("assigned, what users get (decides nothing)")


@pytest.mark.parametrize(
    "text",
    ["a|b", "*bold*", "`code`", r"back\slash", "<b>html</b>", "[link](x)", "a_b_c", "~~struck~~", "&amp;", "![x](y)"],
)
def test_whatever_a_name_holds_is_shown_as_it_is(text):
    page = html(f"| a |\n| --- |\n| {escaped(text)} |\n")
    shown = re.search(r"<td>(.*)</td>", page)[1]  # type: ignore[index]
    assert shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text
    assert escaped("two\nlines") == "two lines"
    markup = decisions.first_model(text)
    assert "Challenger" in html(comparison_markdown(markup)).partition("</h3>")[0]
    assert terminal(markup)[0] == f"Challenger {text}: promote"


@pytest.mark.parametrize(
    ("name", "promote", "heading", "reason"),
    [
        ("first_model", True, "Challenger 1a2b3c4d5e6f: promote", "the first model: there is no champion to compare with"),
        (
            "without_holdout", False, "Challenger 1a2b3c4d5e6f, not compared with champion 9f8e7d6c5b4a: do not promote",
            "no experiment is held out; nothing shows that the challenger is not worse; hold experiments out "
            "(screen.holdout_experiments) that neither model saw, or allow promotion without a comparison",
        ),
        (
            "allowed", True, "Challenger 1a2b3c4d5e6f, not compared with champion 9f8e7d6c5b4a: promote",
            "no experiment is held out; promoted without a comparison, as was allowed",
        ),
        (
            "same_model", False, "Challenger 9f8e7d6c5b4a is the champion",
            "the challenger is the champion: the same data, configuration and code",
        ),
    ],
)  # fmt: skip
def test_decisions_without_a_comparison_have_no_rows(name, promote, heading, reason):
    found = OTHERS[name]
    assert (found.promote, found.reason, found.comparison) == (promote, reason, None)
    assert terminal(found, 200) == [heading, reason]
    assert html(comparison_markdown(found)) == f"<h3>{heading}</h3>\n<p><strong>{reason}</strong></p>\n"


@pytest.mark.parametrize("found", [COMPARED, *OTHERS.values()], ids=lambda found: found.outcome)
def test_a_decision_is_written_and_read_back(found):
    content = found.model_dump_json()
    assert '"decision_schema":1' in content
    assert Decision.model_validate_json(content) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promote": True}, "the decision is not that of its comparison"),
        ({"comparison": None}, "outcome compared and a comparison missing"),
        ({"outcome": "same_model"}, "outcome same_model and a comparison given"),
        ({"champion": None}, None),
    ],
)
def test_a_decision_that_contradicts_itself_cannot_be(change, message):
    with pytest.raises(ValidationError, match=message):
        Decision.model_validate(COMPARED.model_dump() | change)
    with pytest.raises(ValidationError, match="outcome first_model and champion old"):
        Decision.model_validate(OTHERS["first_model"].model_dump() | {"champion": "old"})
