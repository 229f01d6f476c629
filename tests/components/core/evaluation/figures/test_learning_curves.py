from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from components.core.evaluation.figures.learning_curves import draw_mean_teacher, draw_pretrain


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    usual = {"step": "finetune", "fold": 0, "cell_type": "RPE", "backbone": "xception", "epochs": 4, "seconds": 1.0}
    return {**usual, "epoch": number, "loss": 1 / number, "accuracy": number / 10, "sites_per_s": 1.0, **changes}


def texts(svg: str | None) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg or "").iter("{http://www.w3.org/2000/svg}text")]


def test_a_panel_for_each_cell_type_in_the_given_order_with_the_start_of_its_pseudo_labels() -> None:
    history = [epoch(n, cell_type=name) for name in ("RPE", "U2OS", "HUVEC") for n in (1, 2)]
    later = [epoch(3, cell_type="RPE", step="pseudo_label")]
    assert draw_pretrain(history) is None
    for records, starts in ((history, 0), (history + later, 1)):
        found = texts(draw_mean_teacher(records, ["HUVEC", "RPE", "U2OS"]))
        assert [text for text in found if text in ("HUVEC", "RPE", "U2OS")] == ["HUVEC", "RPE", "U2OS"]
        assert found.count("pseudo-labels →") == starts
    unvalidated = draw_mean_teacher([epoch(n, accuracy=None) for n in (1, 2)], ["RPE"])
    assert "not validated" in texts(unvalidated)
