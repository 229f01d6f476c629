"""Seconds from rates: measured ones are used as they are, assumed ones stay under a GPU's peak; prices and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.plan.estimate import RunPlan, make_plan
from pipelines.plan.machines import Machines, read_machines
from pipelines.plan.screens import screen_wells
from pipelines.plan.speeds import (
    ASSUMED,
    BFLOAT16,
    FLOAT32,
    MEASURED,
    SCALED,
    GpuSpeed,
    network_costs,
    roofline_seconds,
)

CONFIG = RunConfig.load("rxrx1")
WELLS = screen_wells(CONFIG, None)
SHIPPED = read_machines()
COSTS = network_costs(CONFIG, SHIPPED, WELLS.classes)


def machines(folder: Path, text: str, gpu: str | None = None) -> Machines:
    file = folder / "rates.yaml"
    file.write_text(text)
    return read_machines(file, gpu)


def planned(own: Machines) -> RunPlan:
    return make_plan(CONFIG, WELLS, own)


@pytest.mark.parametrize("gpu", SHIPPED.gpus)
@pytest.mark.parametrize("name", COSTS)
def test_assumed_rates_stay_under_the_peak_and_know_their_place(gpu: str, name: str):
    kind, cost = SHIPPED.gpus[gpu], COSTS[name]
    training = roofline_seconds(cost, kind, SHIPPED.assumed, BFLOAT16, training=True)
    forward = roofline_seconds(cost, kind, SHIPPED.assumed, BFLOAT16, training=False)
    assert 2 * cost.forward_macs / forward <= SHIPPED.assumed.compute_share * kind.teraflops * 1e12
    assert 2.5 < training / forward < 4.5
    assert 1.5 < roofline_seconds(cost, kind, SHIPPED.assumed, FLOAT32, training=True) / training <= 2.0


def test_shipped_rates_are_called_measured_of_the_gpu_alone_that_they_were_measured_on():
    assert {rate.gpu for rate in SHIPPED.measured} == {"h200"}
    of_h200 = planned(read_machines(gpu="h200"))
    assert {e.compute.basis for e in of_h200.tasks if e.task.on_gpu} == {MEASURED}
    assert of_h200.factor < 2.0
    plan = planned(SHIPPED)
    assert {e.compute.basis for e in plan.tasks if e.task.on_gpu} == {ASSUMED}
    assert plan.basis == ASSUMED
    assert plan.factor == 2.0
    assert {e.compute.basis for e in plan.of("normalize")} == {SCALED}
    assert "not measured" in plan.rates
    assert "nobody's quote" in SHIPPED.prices.note


def test_the_assumed_shares_give_the_measured_rates_within_a_quarter():
    kind = SHIPPED.gpus["h200"]
    for rate in SHIPPED.measured:
        cost = COSTS[rate.backbone]
        training = rate.pass_ == "training"
        assumed = 1 / roofline_seconds(cost, kind, SHIPPED.assumed, BFLOAT16, training=training)
        assert 0.75 < assumed / rate.sites_per_s < 1.25


RATES = """
measured:
  - {gpu: h100, backbone: xception, image_size: 512, pass: training, sites_per_s: 500}
  - {gpu: h100, backbone: xception, image_size: 512, pass: forward, sites_per_s: 2000}
  - {gpu: h100, backbone: xception_large, image_size: 256, pass: training, sites_per_s: 1000}
pods: {loader_threads: 8, start_s: 0}
"""


def test_measured_rates_take_the_place_of_assumed_ones(tmp_path: Path):
    own = machines(tmp_path, RATES, "h100")
    speed = GpuSpeed.of(own, COSTS, CONFIG)
    training, forward = (speed.pass_seconds("xception", kind) for kind in ("training", "forward"))
    assert (training.value, training.basis) == (1 / 500, MEASURED)
    assert (forward.value, forward.basis) == (1 / 2000, MEASURED)
    # Another image size goes by pixels, another network by multiply-accumulates.
    large = speed.pass_seconds("xception_large", "training")
    assert (large.value, large.basis) == (pytest.approx(4 / 1000), SCALED)
    large = speed.pass_seconds("xception_large", "forward")
    ratio = COSTS["xception_large"].forward_macs / COSTS["xception"].forward_macs
    assert (large.value, large.basis) == (pytest.approx(ratio / 2000), SCALED)
    assert (
        GpuSpeed.of(own.model_copy(update={"gpu": "l4"}), COSTS, CONFIG).pass_seconds("xception", "training").basis
        == ASSUMED
    )
    (pretrain,) = [e for e in planned(own).of("pretrain") if e.task.name == "pretrain fold 0 xception"]
    passes = pretrain.passes
    assert pretrain.seconds == pytest.approx(passes[0].student / 500 + passes[1].forward / 2000)


def test_fields_of_a_file_are_joined_with_the_shipped_ones(tmp_path: Path):
    own = machines(
        tmp_path, "gpus: {mine: {teraflops: 100, gigabytes_per_s: 1000, memory_gb: 30, price_per_hour: 1}}\ngpu: mine\n"
    )
    assert own.gpu == "mine"
    assert own.gpus["h100"] == SHIPPED.gpus["h100"]
    assert own.prices == SHIPPED.prices


def test_prices_multiply_what_they_are_of(tmp_path: Path):
    free = "prices: {cpu_core_hour: 0, storage_gb_month: 0, put_per_1000: 0, get_per_1000: 0}\n"
    plan = planned(machines(tmp_path, free))
    price = SHIPPED.gpus[SHIPPED.gpu].price_per_hour
    assert plan.cost.total == pytest.approx(plan.gpu_seconds / 3600 * price)
    assert plan.cost.total_spot == pytest.approx(plan.cost.total * SHIPPED.prices.spot_factor)
    requests = planned(machines(tmp_path, free.replace("get_per_1000: 0", "get_per_1000: 1"))).cost.requests
    assert requests == pytest.approx(plan.transfer.gets / 1000)


def test_a_loader_that_is_slower_than_the_gpu_decides_and_is_told(tmp_path: Path):
    quick = machines(tmp_path, "pods: {loader_threads: 64, store_mb_per_s: 100000}", "h100")
    slow = machines(tmp_path, "pods: {loader_threads: 1}", "h100")
    assert planned(slow).gpu_seconds > planned(quick).gpu_seconds
    assert not any("wait for their sites" in warning for warning in planned(quick).warnings)
    (told,) = [warning for warning in planned(slow).warnings if "wait for their sites" in warning]
    assert "pods.loader_threads" in told


def test_memory_that_does_not_suffice_is_told(tmp_path: Path):
    small = planned(machines(tmp_path, "pods: {gpu_pod: {memory_gib: 8}}", "l4")).warnings
    assert any(w.startswith("pretrain of xception_large needs about") and "l4 has 24" in w for w in small)
    assert any("loader.cache_gib 8" in w and "pods.gpu_pod has 8" in w for w in small)
    large = planned(read_machines(None, "h200")).warnings
    assert not any("needs about" in w for w in large)


def test_a_batch_in_parts_fits_as_the_warning_says(tmp_path: Path):
    (told,) = [w for w in planned(read_machines(None, "l4")).warnings if w.startswith("finetune of xception_large")]
    parts = int(told.split("compute.accumulate to ")[1].split(",")[0])
    for accumulate, fits in ((parts, True), (parts - 1, False)):
        config = RunConfig.load("rxrx1", [f"compute.accumulate={accumulate}"])
        warnings = make_plan(config, WELLS, read_machines(None, "l4")).warnings
        assert any(w.startswith("finetune of xception_large") for w in warnings) != fits


def test_float32_takes_longer_and_more_memory():
    config = RunConfig.load("rxrx1", ["compute.precision=float32"])
    usual, plan = planned(SHIPPED), make_plan(config, WELLS, SHIPPED)
    assert 1.5 * usual.gpu_seconds < plan.gpu_seconds < 2 * usual.gpu_seconds
    assert any("finetune of xception_large needs about" in w for w in plan.warnings)
    assert not any("finetune of xception_large needs about" in w for w in usual.warnings)


def test_gpus_of_a_pod_share_its_work():
    config = RunConfig.load("rxrx1", ["compute.processes=4"])
    usual, plan = planned(SHIPPED), make_plan(config, WELLS, SHIPPED)
    start = SHIPPED.pods.start_s
    for one, four in zip(usual.tasks, plan.tasks, strict=True):
        # Validation wells of a few epochs are filled up to the number of processes.
        assert four.seconds - start == pytest.approx((one.seconds - start) / (4 if four.task.on_gpu else 1), rel=0.01)
    assert plan.enough == 4 * usual.enough
    assert plan.on(8).seconds == pytest.approx(usual.on(2).seconds / 4, rel=0.03)


def test_a_network_that_is_described_needs_no_layers(tmp_path: Path):
    config = RunConfig.load("rxrx1", ["backbones=[{name: resnet, kind: timm, model: resnet50}]"])
    with pytest.raises(InputError, match=r"backbones\.resnet: .*networks"):
        make_plan(config, WELLS, SHIPPED)
    own = machines(tmp_path, "networks: {resnet: {gmacs: 4.1, image_size: 224, parameters: 25000000}}")
    plan = make_plan(config, WELLS, own)
    assert plan.costs["resnet"].forward_macs == pytest.approx(4.1e9 * (512 / 224) ** 2)
    assert plan.gpu_seconds > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus: {h100: {teraflops: 0}}", r"gpus\.h100\.teraflops: input should be greater than 0, got 0"),
        ("price: 3", "price: unknown key"),
        ("gpu: h1000", "gpu: there is no 'h1000'; known are l4"),
        ("measured: [{gpu: mine, backbone: b, image_size: 4, pass: training, sites_per_s: 1}]", "there is no 'mine'"),
        (
            "measured: [{gpu: l4, backbone: b, image_size: 4, pass: training}]",
            r"measured\.0\.sites_per_s: field required",
        ),
        ("[1, 2]", "a mapping was expected, got list"),
        ("prices: {spot_factor: 2}", r"prices\.spot_factor"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_file_name_it_and_the_field(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=message) as found:
        machines(tmp_path, text)
    assert "rates.yaml" in str(found.value)


def test_a_file_that_is_not_there_and_a_gpu_that_is_not_known(tmp_path: Path):
    with pytest.raises(InputError, match=r"--throughput .*nowhere\.yaml: no such file"):
        read_machines(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="--gpu tpu: unknown; known are l4, a10"):
        read_machines(None, "tpu")
