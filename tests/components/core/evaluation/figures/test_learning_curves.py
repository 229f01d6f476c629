from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from components.core.evaluation.figures.learning_curves import draw_mean_teacher, draw_pretrain


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": "finetune",
        "fold": 0,
        "cell_type": "RPE",
        "backbone": "xception",
        "epoch": number,
        "epochs": 4,
        "loss": 1 / number,
        "accuracy": number / 10,
        "sites_per_s": 1.0,
        "seconds": 1.0,
        **changes,
    }


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_panel_for_each_cell_type_in_the_given_order() -> None:
    history = [epoch(n, cell_type=name) for name in ("RPE", "U2OS", "HUVEC") for n in (1, 2)]
    svg = draw_mean_teacher(history, ["HUVEC", "RPE", "U2OS"])
    assert svg is not None
    assert [t for t in texts(svg) if t in ("HUVEC", "RPE", "U2OS")] == ["HUVEC", "RPE", "U2OS"]


def test_marks_the_start_of_the_pseudo_labels() -> None:
    both = [epoch(1), epoch(2), epoch(3, step="pseudo_label")]
    assert draw_pretrain(both) is None
    assert "pseudo-labels →" in texts(draw_mean_teacher(both, ["RPE"]) or "")
    assert "pseudo-labels →" not in texts(draw_mean_teacher(both[:2], ["RPE"]) or "")


def test_mentions_a_fold_without_validation() -> None:
    svg = draw_mean_teacher([epoch(n, accuracy=None) for n in (1, 2)], ["RPE"]) or ""
    assert "not validated" in texts(svg)
    assert "No fold was validated." in ElementTree.fromstring(svg).get("aria-label", "")
