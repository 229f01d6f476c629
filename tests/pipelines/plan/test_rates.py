"""Rates: measured ones are used unchanged; others follow from multiply-accumulates and memory bandwidth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from components.core.errors import InputError
from components.core.learning.network_size import NetworkSize
from pipelines.plan.rates import SHIPPED, read_rates
from tests.bench.gpu import with_rates

XCEPTION = NetworkSize("xception", 24_480_000_000, 20_800_000, 2048, 700_000_000)


def test_a_measured_rate_is_used_unchanged():
    seconds = read_rates(gpu="H200").site_seconds(XCEPTION, 512)
    assert seconds == (pytest.approx(1 / 586), pytest.approx(1 / 1556), "measured")


def test_another_size_of_image_is_scaled_by_multiply_accumulates():
    rates = read_rates(gpu="h200")
    quarter = replace(XCEPTION, macs=XCEPTION.macs // 4)
    assert rates.site_seconds(quarter, 256)[1:] == (pytest.approx(1 / 1556 / 4), "scaled")


def test_another_gpu_is_scaled_by_memory_bandwidth():
    rates = read_rates(gpu="h100")
    ratio = rates.gpus["h200"].gigabytes_per_s / rates.gpus["h100"].gigabytes_per_s
    training, _, basis = rates.site_seconds(XCEPTION, 512)
    assert (training, basis) == (pytest.approx(ratio / 586), "assumed")


def test_a_file_replaces_single_fields(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("prices: {currency: EUR}\npods: {start_s: 5}\n")
    rates, shipped = read_rates(file), read_rates()
    assert (rates.prices.currency, rates.pods.start_s) == ("EUR", 5)
    assert rates.prices.cpu_core_hour == shipped.prices.cpu_core_hour


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("gpu: tpu", "gpu tpu: unknown; known are l4"),
        ("pods: {start: 5}", "pods.start"),
        ("[1]", "expected a mapping"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: str, problem: str):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="--throughput") as caught:
        read_rates(file)
    assert problem in str(caught.value)


def test_new_rates_leave_the_other_lines_of_the_file_as_they_are():
    text = SHIPPED.read_text()
    rate = {"gpu": "l4", "backbone": "b", "image_size": 8, "gmacs": 1.0, "training": 2, "forward": 3, "source": ""}
    changed = with_rates(text, [rate])
    assert yaml.safe_load(changed) == yaml.safe_load(text) | {"measured": [rate]}
    assert changed.startswith(text[: text.index("measured:\n- ")])
