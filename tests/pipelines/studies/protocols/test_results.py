"""Means and deviations by hand, the file read back, and the table as a terminal shows it."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from pipelines.studies.protocols.results import ORGANISERS, ProtocolResults, ProtocolScores


@pytest.fixture
def results() -> ProtocolResults:
    batch = ProtocolScores(
        {
            2: {"overall": 0.5, "HUVEC": 0.6},
            1: {"overall": 0.3, "HUVEC": 0.2, "U2OS": 0.1},
            3: {"overall": 0.4, "HUVEC": 0.4},
        },
        {n: {"fold": 0, "wells": 10 * n, "experiments": [f"HUVEC-0{n}"]} for n in (1, 2, 3)},
    )
    random = ProtocolScores(
        {1: {"overall": 0.55, "HUVEC": 0.7, "U2OS": 0.2}}, {1: {"fold": 0, "wells": 9, "experiments": []}}
    )
    return ProtocolResults(("HUVEC", "U2OS", "RPE"), {"batch": batch, "random": random})


def shown(results: ProtocolResults) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=80).print(results.table())
    return file.getvalue().splitlines()


def test_the_file_has_means_and_sample_deviations_by_hand(results, tmp_path):
    results.write(tmp_path / "protocols.json", {"code_version": "v"})
    content = json.loads((tmp_path / "protocols.json").read_text())
    assert (content["schema"], content["code_version"]) == (1, "v")
    batch = content["protocols"]["batch"]
    assert list(batch) == ["overall", "HUVEC", "U2OS"], "no row for a cell type that was never held out"
    assert batch["overall"] == {
        "mean": pytest.approx(0.4),
        "sd": pytest.approx(0.1),  # sqrt((0.01 + 0.01 + 0) / 2)
        "per_repeat": {"1": 0.3, "2": 0.5, "3": 0.4},
    }
    assert batch["HUVEC"]["sd"] == pytest.approx(0.2)
    assert batch["U2OS"] == {"mean": 0.1, "sd": None, "per_repeat": {"1": 0.1}}
    assert content["protocols"]["random"]["overall"] == {"mean": 0.55, "sd": None, "per_repeat": {"1": 0.55}}
    assert content["held_out"]["batch"]["2"]["wells"] == 20
    assert content["organisers"]["batch"]["HEPG2"] == {"mean": 0.308, "sd": 0.04}
    assert content["organisers"]["random"]["overall"] == {"mean": 0.528, "sd": None}
    assert [path.name for path in tmp_path.iterdir()] == ["protocols.json"]


def test_what_was_written_is_read_back(results):
    content = json.loads(json.dumps(results.as_json({})))
    for protocol, measured in results.measured.items():
        read = ProtocolScores.read(content, protocol)
        assert (read.accuracy, read.held_out) == (measured.accuracy, measured.held_out)


def test_the_table_has_our_figures_beside_the_published_ones_and_says_where_those_are_from(results):
    lines = shown(results)
    cells = {
        row[0]: row[1:]
        for row in ([cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│"))
    }
    assert cells["All"] == ["40.0 ± 10.0", "44.1 ± 5.7", "55.0 ± n/a", "52.8"]
    assert cells["HUVEC"] == ["40.0 ± 20.0", "56.7 ± 8.4", "70.0 ± n/a", "68.9 ± 0.3"]
    assert cells["U2OS"] == ["10.0 ± n/a", "2.4 ± 1.0", "20.0 ± n/a", "22.0 ± 0.4"]
    assert cells["RPE"] == ["–", "31.2 ± 2.7", "–", "40.0 ± 0.9"]
    caption = " ".join(line.strip() for line in lines)
    assert "organisers' baseline on the real RxRx1" in caption
    assert "n/a for one" in caption
    assert max(map(len, lines)) <= 80
    assert set(ORGANISERS) == {"batch", "random"}
