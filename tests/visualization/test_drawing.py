"""The attention figure: its size and content, and errors for inputs that do not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_avfusion.visualization.drawing import draw_attention


def material(frames: int = 12, size: tuple[int, int] = (64, 64)) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "frames": torch.randint(0, 255, (frames, 3, *size), dtype=torch.uint8, generator=generator),
        "video_map": torch.rand(frames // 2, size[0] // 16, size[1] // 16, generator=generator),
        "times": [0.1 * index for index in range(frames)],
        "spectrogram": torch.randn(96, 32, generator=generator),
        "audio_map": torch.rand(6, 2, generator=generator),
    }


def draw(path, **arguments) -> np.ndarray:
    draw_attention(path, **arguments)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("missing", [(), ("frames", "video_map", "times"), ("spectrogram", "audio_map"), ("times",)])
def test_figure_is_written_and_not_blank(tmp_path, missing):
    given = {name: value for name, value in material().items() if name not in missing}
    image = draw(tmp_path / "figure.png", title="circle 97%\nhigh 88%", **given)
    assert image.shape[1] == pytest.approx(13.6 * 110, abs=2)
    assert (image < 250).any(axis=-1).mean() > 0.2
    assert image.std() > 20


def test_tiny_and_wide_and_few_frames(tmp_path):
    wide = material(frames=2, size=(64, 160))
    tall = material(frames=40, size=(96, 48))
    assert draw(tmp_path / "wide.png", **wide).shape[0] < draw(tmp_path / "tall.png", **tall).shape[0]


def test_relevance_is_drawn_at_its_patch(tmp_path):
    """Moving the one relevant patch changes that part of the frames and of the spectrogram."""
    given = material(frames=2, size=(64, 64))
    given["frames"].fill_(90)
    given["spectrogram"].zero_()
    spot = {"video_map": torch.zeros(1, 4, 4), "audio_map": torch.zeros(6, 2)}
    images = []
    for column in (0, 3):
        for name in spot:
            spot[name].zero_()
        spot["video_map"][0, 0, column] = 1
        spot["audio_map"][column, 0] = 1
        images.append(draw(tmp_path / f"{column}.png", **{**given, **spot}))
    warm = [(image[..., 0] - image[..., 2] > 60) for image in images]  # the top of inferno is yellow, the rest is grey
    width = images[0].shape[1]
    left = [np.nonzero(mask[:, : int(0.9 * width)].any(axis=0))[0].mean() for mask in warm]
    assert warm[0].sum() > 2000
    assert left[0] < left[1]


def test_uniform_relevance_can_be_drawn(tmp_path):
    given = {**material(), "video_map": torch.full((6, 4, 4), 0.01), "audio_map": torch.full((6, 2), 0.01)}
    assert draw(tmp_path / "uniform.png", **given).std() > 20


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": None, "video_map": None, "times": None, "spectrogram": None, "audio_map": None}, "nothing to draw"),
        ({"frames": torch.zeros(12, 3, 64, 64)}, "uint8"),
        ({"times": [0.0]}, "got 1 values for 12 frames"),
        ({"video_map": torch.ones(5, 4, 4)}, "multiple of t"),
        ({"spectrogram": torch.zeros(1, 96, 32)}, "`spectrogram`"),
        ({"audio_map": torch.zeros(1, 6, 2)}, "`audio_map`"),
    ],
)
def test_wrong_shapes_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        draw_attention(tmp_path / "never.png", **{**material(), **wrong})
    assert not (tmp_path / "never.png").exists()
