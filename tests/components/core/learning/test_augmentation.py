"""Training views: symmetries, bounds, and agreement with a plain definition, on the CPU and a GPU."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from components.core.config import AugmentConfig
from components.core.learning import augmentation
from components.core.learning.augmentation import cutmix, dihedral, easy_view, hard_view, normal_view
from components.core.learning.images import Standardiser
from components.core.learning.loader import Upload
from tests.components.core.learning.tiny_networks import STILL

VIEWS = [easy_view, normal_view, hard_view]
ALL_OF_IT = AugmentConfig(geometric_probability=1.0, erase_probability=1.0)
UNIFORM = AugmentConfig(erase_probability=1.0, erase_uniform_aspect=True)
ZOOMED = AugmentConfig(zoom=(0.5, 1.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(b: int = 4, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, 3, size, size, generator=generator(seed))


def name(x: torch.Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


def test_the_eight_views_are_the_symmetries_of_the_square():
    x = images(1)
    views = {name(dihedral(x, view)): view for view in range(8)}
    assert len(views) == 8
    assert views[name(x)] == 0
    rotations = {name(torch.rot90(x, turns, (2, 3))) for turns in range(4)}
    mirrored = {name(torch.rot90(x.flip(3), turns, (2, 3))) for turns in range(4)}
    assert rotations | mirrored == set(views)
    for first in range(8):
        products = {views[name(dihedral(dihedral(x, first), second))] for second in range(8)}
        assert products == set(range(8)), "closed, and every view has an inverse"


def test_shift_scale_aspect_and_crop_keep_their_configured_bounds():
    """On a white square of 20 of 40 pixels."""
    square = torch.zeros(500, 1, 40, 40)
    square[:, :, 10:30, 10:30] = 1.0

    def seen(view, **changes):
        none = {"geometric_probability": 1.0, "erase_probability": 0.0, "shift": 0.0, "scale": 0.0, "aspect": 0.0}
        return view(square, AugmentConfig(**{**none, **changes}), generator())

    def extremes(values):
        return pytest.approx((float(values.min()), float(values.max())), rel=0.03)

    assert extremes((seen(easy_view, shift=0.1) > 0.5).any(3).int().argmax(2)) == (6, 14)
    assert extremes(seen(easy_view, scale=0.2).sum((1, 2, 3)).sqrt()) == (20 * 0.8, 20 * 1.2)
    reshaped = seen(easy_view, aspect=0.3)
    assert extremes(reshaped.sum(3).amax((1, 2)) / reshaped.sum(2).amax((1, 2))) == (0.7, 1.3)
    assert float(reshaped.sum((1, 2, 3)).mean()) == pytest.approx(400, rel=0.01)
    assert extremes(seen(hard_view, crop=(0.8, 1.0)).sum((1, 2, 3)).sqrt()) == (20, 20 / 0.8)
    for view in (easy_view, normal_view):
        assert extremes(seen(view, zoom=(0.7, 0.9)).sum((1, 2, 3)).sqrt()) == (20 / 0.9, 20 / 0.7)
    assert extremes(seen(hard_view, zoom=(0.9, 1.0), crop=(0.8, 0.9)).sum((1, 2, 3)).sqrt()) == (20 / 0.9, 20 / 0.72)


def plain_view(name_, x, config, generator):
    """The views as their definitions read, whole batch by whole batch: draws, symmetry, map, rectangle."""
    b, _, h, w = x.shape

    def uniform(low, high):
        return low + (high - low) * torch.rand(b, generator=generator)

    view_B = torch.randint(8, (b,), generator=generator)
    x = torch.stack([dihedral(x[k : k + 1], int(view))[0] for k, view in enumerate(view_B)])
    scale_B = 1.0 + uniform(-config.scale, config.scale)
    root_B = torch.sqrt(1.0 + uniform(-config.aspect, config.aspect))
    shift_B2 = torch.stack([uniform(-2.0 * config.shift, 2.0 * config.shift) for _ in "xy"], 1)
    moved_B = uniform(0.0, 1.0) < config.geometric_probability
    range_B2 = torch.stack([1.0 / (scale_B * root_B), root_B / scale_B], 1)
    range_B2[~moved_B], shift_B2[~moved_B] = 1.0, 0.0
    crop = None

    def drawn_crop(bounds):
        side_B = uniform(*bounds)
        return side_B, torch.stack([uniform(-1.0, 1.0) for _ in "xy"], 1) * (1.0 - side_B)[:, None]

    if config.zoom != (1.0, 1.0):
        side_B, corner_B2 = drawn_crop(config.zoom)
        shift_B2, range_B2 = shift_B2 + range_B2 * corner_B2, range_B2 * side_B[:, None]
        moved_B[:] = True
    if name_ == "hard_view":
        side_B, corner_B2 = drawn_crop(config.crop)
        if config.erase_before_crop:
            crop = torch.cat([torch.diag_embed(side_B[:, None].expand(-1, 2)), corner_B2[:, :, None]], 2)
        else:
            shift_B2, range_B2 = shift_B2 + range_B2 * corner_B2, range_B2 * side_B[:, None]
            moved_B[:] = True
    theta_B23 = torch.cat([torch.diag_embed(range_B2), shift_B2[:, :, None]], 2)
    grid = functional.affine_grid(theta_B23, list(x.shape), align_corners=False)
    x = torch.where(moved_B[:, None, None, None], functional.grid_sample(x, grid, align_corners=False), x)
    if name_ == "easy_view":
        return x
    if config.erase_uniform_aspect:
        tries = torch.rand(2, 10, b, generator=generator)
        bounds = torch.tensor([config.erase_area, config.erase_aspect])[:, :, None, None]
        area_TB, aspect_TB = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * tries
        fitting = [
            next(
                (k for k in range(10) if max(area_TB[k, n] * aspect_TB[k, n], area_TB[k, n] / aspect_TB[k, n]) <= 1), 0
            )
            for n in range(b)
        ]
        area_B, aspect_B = area_TB[fitting, range(b)] * (h * w), aspect_TB[fitting, range(b)]
    else:
        area_B = uniform(*config.erase_area) * (h * w)
        aspect_B = torch.exp(uniform(math.log(config.erase_aspect[0]), math.log(config.erase_aspect[1])))
    rows_B, columns_B = torch.sqrt(area_B * aspect_B).clamp(max=h), torch.sqrt(area_B / aspect_B).clamp(max=w)
    top_B, left_B = uniform(0.0, 1.0) * (h - rows_B), uniform(0.0, 1.0) * (w - columns_B)
    chosen_B = uniform(0.0, 1.0) < config.erase_probability
    centre = torch.arange(h) + 0.5
    in_rows = (centre >= top_B[:, None]) & (centre < (top_B + rows_B)[:, None]) & chosen_B[:, None]
    in_columns = (centre >= left_B[:, None]) & (centre < (left_B + columns_B)[:, None])
    x = x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
    if crop is not None:
        x = functional.grid_sample(
            x, functional.affine_grid(crop, list(x.shape), align_corners=False), align_corners=False
        )
    return x


@pytest.mark.parametrize("view", VIEWS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), b=st.integers(1, 9), size=st.sampled_from([2, 3, 16, 33, 48]), last=st.booleans())
def test_views_equal_the_plain_definition_bit_for_bit(view, seed, b, size, last):
    x = images(b, size, seed % 100)
    if last:
        x = x.to(memory_format=torch.channels_last)
    before = x.clone()
    for config in (AugmentConfig(), ALL_OF_IT, STILL, UNIFORM, ZOOMED):
        expected = plain_view(view.__name__, x, config, generator(seed))
        assert torch.equal(view(x, config, generator(seed)), expected)
    assert torch.equal(x, before)


def test_a_hard_view_may_be_erased_before_its_crop():
    """White images: but for a pixel at the rectangle's edges, which is sharp, as if erased images were cropped."""
    x = torch.ones(60, 1, 48, 48)
    config = AugmentConfig(geometric_probability=0.0, erase_probability=0.7, crop=(0.5, 0.9), erase_before_crop=True)
    seen, expected = hard_view(x, config, generator(3)), plain_view("hard_view", x, config, generator(3))
    around = functional.pad(expected, (1, 1, 1, 1), mode="replicate")
    highest, lowest = functional.max_pool2d(around, 3, 1), -functional.max_pool2d(-around, 3, 1)
    within = (highest - lowest < 1e-4) & (expected.round() - expected).abs().lt(1e-4)
    torch.testing.assert_close(seen[within], expected[within], atol=1e-4, rtol=0)
    assert within.float().mean() > 0.9
    assert 0.05 < (seen == 0).float().mean() < 0.4
    after = hard_view(x, config.model_copy(update={"erase_before_crop": False}), generator(3))
    assert (seen != after).float().mean() > 0.05


def test_a_uniform_aspect_ratio_is_uniform_and_its_rectangles_are_whole():
    ones = torch.ones(4000, 1, 64, 64)

    def drawn(config):
        erased = normal_view(ones, config.model_copy(update={"geometric_probability": 0.0}), generator())[:, 0] == 0
        rows, columns = erased.any(2).sum(1).float(), erased.any(1).sum(1).float()
        return rows, columns, rows / columns

    rows, columns, aspect = drawn(UNIFORM)
    assert ((rows == 64) | (columns == 64)).float().mean() < 0.01
    middle = aspect[(rows * columns < 0.25 * 64**2) & (rows * columns > 0.05 * 64**2)]  # none of which is drawn again
    for share in (0.25, 0.5, 0.75):
        assert float(middle.quantile(share)) == pytest.approx(0.3 + 3.0 * share, rel=0.08)
    assert float(drawn(ALL_OF_IT)[2].median()) == pytest.approx(1.0, rel=0.08)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [16, 33, 128])
def test_the_gpu_path_equals_the_cpu_path(view, size, monkeypatch):
    """What a GPU does, on the CPU: equal within the rounding of coordinates, a ten-thousandth of a pixel."""
    x = images(24, size, 3).to(memory_format=torch.channels_last)
    erased = AugmentConfig(geometric_probability=0.0, erase_probability=1.0, crop=(1.0, 1.0))
    before = ALL_OF_IT.model_copy(update={"erase_uniform_aspect": True, "erase_before_crop": True, "zoom": (0.6, 0.9)})
    for config in (AugmentConfig(), ALL_OF_IT, STILL, erased, before):
        by_parts = view(x, config, generator(7))
        with monkeypatch.context() as patch:
            patch.setattr(augmentation, "_viewed_by_parts", augmentation._viewed_at_once)
            at_once = view(x, config, generator(7))
        torch.testing.assert_close(at_once, by_parts, atol=1e-3, rtol=0)
        assert at_once.is_contiguous(memory_format=torch.channels_last)
        if config is erased:
            assert torch.equal(at_once == 0, by_parts == 0)


@given(
    seed=st.integers(0, 2**31), domains=st.integers(1, 3), each=st.integers(1, 5), alpha=st.sampled_from([0.2, 1, 9])
)
@settings(max_examples=40, deadline=None)
def test_cutmix_takes_a_rectangle_and_its_share_of_the_target_from_an_image_of_the_same_domain(
    seed, domains, each, alpha
):
    b = domains * each
    images_B1HW = torch.arange(b, dtype=torch.float32)[:, None, None, None].expand(b, 2, 12, 12)
    target_B, type_BT = torch.arange(b) + 100, torch.eye(b)
    drawn = generator(seed)
    mixed, target, type_BT, weight = cutmix(
        images_B1HW.contiguous(), target_B, type_BT, AugmentConfig(cutmix=alpha), drawn, domains
    )
    assert torch.equal(target[:b], target_B)
    other_B = target[b:] - 100
    assert torch.equal(other_B // each, torch.arange(b) // each), "of the same domain"
    assert sorted(other_B.tolist()) == list(range(b)), "every image once"
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    for k, image in enumerate(mixed[:, 0]):
        foreign = image == other_B[k]
        assert torch.equal(torch.where(foreign, other_B[k], k).float(), image)
        if other_B[k] != k:
            area = int(foreign.any(1).sum() * foreign.any(0).sum())
            assert int(foreign.sum()) == area, "a rectangle"
            assert float(weight[b + k]) / 2 == pytest.approx(area / 144, abs=1e-6)
            assert float(type_BT[k, other_B[k]]) == pytest.approx(area / 144, abs=1e-6)
    torch.testing.assert_close(weight[:b] + weight[b:], torch.full((b,), 2.0))
    torch.testing.assert_close(type_BT.sum(1), torch.ones(b))


def test_cutmix_shares_follow_the_beta_distribution():
    """Of the area that is replaced, in closed form for a uniform share and a uniform centre, and for a share of a half."""
    x, target_B = torch.zeros(6000, 1, 64, 64), torch.arange(6000)

    def replaced(alpha):
        return cutmix(x, target_B, None, AugmentConfig(cutmix=alpha), generator())[3][6000:] / 2

    # A side r = sqrt(share) keeps r - r^2 / 4 within the image in the mean, each way by itself.
    assert float(replaced(1.0).mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.01)
    half = replaced(1e6)
    assert float(half.max()) == pytest.approx(0.5, abs=0.02)
    assert float(half.mean()) == pytest.approx((0.5**0.5 - 0.5 / 4) ** 2, abs=0.01)


def test_cutmix_of_0_changes_and_draws_nothing():
    x, target_B, numbers = images(), torch.arange(4), generator()
    before = numbers.get_state()
    mixed, target, types, weight = cutmix(x, target_B, None, AugmentConfig(), numbers)
    assert mixed is x
    assert target is target_B
    assert (types, weight) == (None, None)
    assert torch.equal(numbers.get_state(), before)


@pytest.mark.gpu
@pytest.mark.parametrize("view", VIEWS)
def test_a_seed_gives_the_same_views_on_gpu_and_cpu(view):
    x, plate_B = torch.randint(0, 60, (16, 3, 128, 128), dtype=torch.uint8), torch.arange(16) % 4
    mean_PC, std_PC = torch.rand(4, 3, generator=generator()) * 20 + 1, torch.rand(4, 3, generator=generator()) * 9 + 1

    def on(device):
        numbers = generator(11)
        standardise = Standardiser(mean_PC, std_PC, 0.1, torch.device(device))
        standard = standardise(x.to(device), plate_B, numbers)
        viewed = view(standardise.jittered(standard, plate_B, numbers), ALL_OF_IT, numbers)
        return cutmix(viewed, plate_B.to(device), None, AugmentConfig(cutmix=1.0), numbers)[0].cpu()

    torch.testing.assert_close(on("cuda"), on("cpu"), atol=2e-2, rtol=0)
    assert (on("cuda") - on("cpu")).abs().mean() < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("view", VIEWS)
def test_on_a_gpu_no_step_makes_the_host_wait(view):
    device = torch.device("cuda")
    standardise = Standardiser(torch.ones(4, 3), torch.ones(4, 3), 0.1, device, noise=0.1)
    target_B = torch.arange(16, device=device)
    pixels, upload = torch.zeros(16, 3, 64, 64, dtype=torch.uint8).pin_memory(), Upload(device)

    def step():
        plate_B = torch.arange(16) % 4
        x = standardise(upload(pixels), plate_B, generator())
        x = view(standardise.jittered(x, plate_B, generator()), AugmentConfig(zoom=(0.5, 1.0)), generator())
        return cutmix(x, target_B, None, AugmentConfig(cutmix=1.0), generator(), 2)[0]

    step()  # allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert y.is_contiguous(memory_format=torch.channels_last)
