"""Augmentations: published ranges and order, equal for all frames of a clip, drawn only from the given generator."""

import colorsys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_avfusion.data.augmentation import (
    FrameAugmentation,
    SpecAugment,
    _random_spans,
    adjust_hue,
    adjust_saturation,
    draw_mixup,
    mix,
    random_time_shift,
)
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spectrograms(batch=3, time=40, mel=24):
    return torch.rand(batch, time, mel, generator=seeded(1)) + 1.0  # never 0, so that zeros are masks


# ---- SpecAugment

spec_settings = st.builds(
    SpecAugment,
    freq_mask_max_bins=st.integers(0, 40),
    freq_mask_count=st.integers(0, 3),
    time_mask_max_frames=st.integers(0, 60),
    time_mask_count=st.integers(0, 4),
    time_mask_max_ratio=st.sampled_from([0.0, 0.1, 1.0]),
    time_warp_max_frames=st.integers(0, 6),
    time_warp_max_ratio=st.sampled_from([0.0, 0.2]),
)


@settings(max_examples=60, deadline=None)
@given(spec_settings, st.integers(0, 2**31), st.integers(3, 50), st.integers(1, 40))
def test_masks_are_whole_rows_and_columns_within_their_limits(augment, seed, time, mel):
    features = spectrograms(2, time, mel)
    out = augment(features, seeded(seed))
    assert out.shape == features.shape
    assert (features > 0).all()  # the input does not change
    for row in out == 0:
        columns, rows = row.all(dim=0), row.all(dim=1)
        # masks cover whole columns (bins) and whole rows (time)
        assert torch.equal(row, columns[None, :] | rows[:, None])
        if not rows.all():
            bins = min(augment.freq_mask_count * max(augment.freq_mask_max_bins - 1, 0), mel)
            assert columns.sum() <= bins
        if not columns.all():
            longest = min(max(augment.time_mask_max_frames - 1, 0), max(int(augment.time_mask_max_ratio * time), 1))
            assert rows.sum() <= augment.time_mask_count * longest
            if augment.time_mask_max_ratio == 0:
                assert rows.sum() == 0


def test_default_settings_mask_only_frequencies():
    """As in lingvo, a max_ratio of 0 disables time masks and warp, whatever the other settings."""
    features = spectrograms(64, 100, 128)
    out = SpecAugment()(features, seeded())
    masked = out == 0
    assert torch.equal(out[~masked], features[~masked])
    assert torch.equal(masked.all(dim=1), masked.any(dim=1))
    widths = masked[:, 0].sum(dim=1)
    assert widths.max() <= 47  # floor(48 u), u < 1
    assert widths.float().mean() == pytest.approx(23.5, abs=6)
    both = SpecAugment(time_mask_max_ratio=1.0)(features, seeded())
    rows = (both == 0).all(dim=2).sum(dim=1)
    assert rows.max() <= 4 * 47
    assert rows.float().mean() > 40


def test_spans_reach_both_ends_and_one_frame_is_always_allowed():
    spans = _random_spans((4000, 1), 10, 4, 1.0, seeded())
    assert spans.any(dim=0).all()
    lengths = spans.sum(dim=1)
    assert set(lengths.tolist()) == {0, 1, 2, 3}
    assert set(_random_spans((400, 1), 10, 4, 0.001, seeded()).sum(dim=1).tolist()) == {0, 1}


def test_warp_moves_one_anchor_and_keeps_the_ends():
    """A ramp shows the source of each row: the map must be monotonic, fixed at 0, and bend at one position."""
    ramp = torch.arange(50.0).view(1, 50, 1).expand(200, 50, 2).contiguous()
    augment = SpecAugment(freq_mask_count=0, time_mask_count=0, time_warp_max_frames=5, time_warp_max_ratio=1.0)
    out = augment(ramp, seeded())[..., 0]
    assert (out[:, 0] == 0).all()
    steps = out.diff(dim=1)
    assert (steps >= -1e-5).all()
    assert (out - ramp[..., 0]).abs().max() <= 5.01
    assert (out - ramp[..., 0]).abs().amax(dim=1).gt(1).float().mean() > 0.5
    # One slope before the anchor and one after it; a third only if the bend is inside a step.
    for row in steps[:20]:
        bends = (row.diff().abs() > 1e-3).nonzero()
        assert len(bends) <= 3


def test_time_shift_is_a_roll():
    features = spectrograms(20, 30, 4)
    out = random_time_shift(features, seeded())
    shifts = []
    for before, after in zip(features, out):
        shift = next(n for n in range(30) if torch.equal(before.roll(n, 0), after))
        shifts.append(shift)
    assert len(set(shifts)) > 5


# ---- mixup


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 1.0), st.integers(1, 7), st.integers(0, 1000))
def test_mixing_keeps_convexity_and_pairs_the_reversed_batch(weight, batch, seed):
    values = torch.rand(batch, 3, generator=seeded(seed))
    mixed = mix(values, weight)
    assert torch.allclose(
        mixed, torch.stack([weight * values[i] + (1 - weight) * values[batch - 1 - i] for i in range(batch)])
    )
    labels = mix(torch.nn.functional.one_hot(torch.arange(batch) % 3, 3).float(), weight)
    assert torch.allclose(labels.sum(dim=1), torch.ones(batch))
    assert torch.allclose(mix(values, torch.full((batch,), weight)), mixed)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
def test_mixup_weights_follow_the_beta_distribution(alpha):
    generator = seeded()
    drawn = torch.tensor([draw_mixup(alpha, generator) for _ in range(3000)])
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    with pytest.raises(ValueError, match="alpha"):
        draw_mixup(0.0)


# ---- frames


def clip(height=48, width=64, frames=3):
    return (torch.rand(1, 3, height, width, generator=seeded(2)) * 255).to(torch.uint8).repeat(frames, 1, 1, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(48, 64), (64, 48), (40, 40)]))
def test_all_frames_are_augmented_equally_and_stay_in_range(seed, size):
    augment = FrameAugmentation(crop=32, shortest_edge=40)
    frames = clip(*size)
    out = augment(frames, seeded(seed))
    assert out.shape == (3, 3, 32, 32)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 255.01
    assert torch.equal(out[0], out[1])
    assert torch.equal(out, augment(frames, seeded(seed)))


def test_without_jitter_and_colour_only_crops():
    frames = clip(40, 50, 1)
    still = FrameAugmentation(crop=32, shortest_edge=40, scale=None, flip=0.0, color=0.0, grayscale=0.0)
    crops = {
        (top, left): frames[0, :, top : top + 32, left : left + 32].float() for top in range(9) for left in range(19)
    }
    places = set()
    for seed in range(80):
        out = still(frames, seeded(seed))[0]
        places.add(next(place for place, crop in crops.items() if torch.equal(crop, out)))
    assert {top for top, _ in places} == set(range(9))  # all positions, including both ends
    assert {0, 18} <= {left for _, left in places} or len({left for _, left in places}) > 14
    flipped = FrameAugmentation(crop=32, shortest_edge=40, scale=None, flip=1.0, color=0.0, grayscale=0.0)
    assert torch.equal(flipped(frames, seeded(3)), still(frames, seeded(3)).flip(-1))


def test_scale_jitter_is_independent_for_height_and_width():
    """On an image of two ramps, the slopes of the crop are the inverse factors."""
    rows = torch.arange(100.0).view(1, 1, 100, 1).expand(1, 1, 100, 100)
    columns = rows.transpose(2, 3)
    frames = torch.cat([rows, columns, rows], dim=1).to(torch.uint8)
    augment = FrameAugmentation(crop=80, shortest_edge=100, flip=0.0, color=0.0, grayscale=0.0)
    factors = []
    for seed in range(60):
        out = augment(frames, seeded(seed))[0]
        factors.append((70 / (out[0, 75, 40] - out[0, 5, 40]).item(), 70 / (out[1, 40, 75] - out[1, 40, 5]).item()))
    factors = torch.tensor(factors)
    assert factors.min() > 0.87
    assert factors.max() < 1.37
    assert factors.amin(0).max() < 0.98
    assert factors.amax(0).min() > 1.25
    assert torch.corrcoef(factors.T)[0, 1].abs() < 0.35


@pytest.mark.parametrize(("turns", "factor"), [(0.13, 0.6), (-0.2, 1.4), (0.0, 1.0)])
def test_saturation_and_hue_match_hsv(turns, factor):
    grey, black, red = [0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]
    colors = [*torch.rand(50, 3, generator=seeded(4)).tolist(), grey, black, red]
    image = torch.tensor(colors).T.view(3, -1, 1)
    turned = adjust_hue(image, turns).view(3, -1).T
    faded = adjust_saturation(image, factor).view(3, -1).T
    for color, hue, saturation in zip(colors, turned.tolist(), faded.tolist()):
        h, s, v = colorsys.rgb_to_hsv(*color)
        assert hue == pytest.approx(colorsys.hsv_to_rgb((h + turns) % 1, s, v), abs=1e-5)
        assert saturation == pytest.approx(colorsys.hsv_to_rgb(h, min(s * factor, 1.0), v), abs=1e-5)


def test_grayscale_has_equal_channels():
    gray = FrameAugmentation(crop=32, shortest_edge=40, color=0.0, grayscale=1.0)(clip(), seeded())
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])


def test_recipe_for_a_processor():
    assert FrameAugmentation.for_processor(AVFusionVideoProcessor()) == FrameAugmentation()
    resized_only = AVFusionVideoProcessor(size={"height": 63, "width": 63}, do_center_crop=False)
    augment = FrameAugmentation.for_processor(resized_only, flip=0.0)
    assert (augment.crop, augment.shortest_edge, augment.flip) == (63, 70, 0.0)
    with pytest.raises(ValueError, match="must be square"):
        FrameAugmentation.for_processor(AVFusionVideoProcessor(crop_size={"height": 32, "width": 48}))


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="does not fit"):
        FrameAugmentation(crop=64, shortest_edge=64)
    with pytest.raises(ValueError, match="flip"):
        FrameAugmentation(flip=1.5)
    with pytest.raises(ValueError, match="uint8"):
        FrameAugmentation()(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="time_mask_count"):
        SpecAugment(time_mask_count=-1)
    with pytest.raises(ValueError, match=r"\[B, time, mel\]"):
        SpecAugment()(torch.rand(4, 4))
