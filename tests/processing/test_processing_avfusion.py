"""The base processor: the bounds of a clip in its file, and what a call leaves behind."""

import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from rendering import render_clip
from travellers import processor

from hf_avfusion.media.reader import MediaError


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    return [str(render_clip(folder / f"{name}.mp4", seconds=2.0, audio=name)) for name in ("chirp", "clicks")]


def rows(inputs) -> list[torch.Tensor]:
    return [torch.cat([inputs[name][row].flatten() for name in inputs]) for row in range(len(inputs["pixel_values"]))]


def test_start_and_end_bound_the_clip_in_each_file(clips):
    prepare = processor()
    window = prepare.load_clip(clips[0], start=1.0, end=1.5)
    expected = rows(prepare.process_clips(window, return_tensors="pt"))[0]
    part = rows(prepare(videos=clips[0], start=1.0, end=1.5, return_tensors="pt"))[0]
    assert torch.equal(part, expected)
    whole = rows(prepare(videos=clips[1], return_tensors="pt"))[0]
    assert not torch.equal(part, whole)
    batch = rows(prepare(videos=clips, start=[1, None], end=[np.float32(1.5), None], return_tensors="pt"))
    assert torch.equal(batch[0], part)
    assert torch.equal(batch[1], whole)
    sound = prepare(audio=clips[0], start=1.0, end=1.5, return_tensors="pt")
    assert torch.equal(sound["input_features"].flatten(), part[-sound["input_features"].numel() :])


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ({"start": "1"}, ValueError, "start must be a number of seconds from 0 on or None, got '1'"),
        ({"end": float("nan")}, ValueError, "end must be a number of seconds"),
        ({"start": -3}, ValueError, "start must be a number of seconds from 0 on"),
        ({"end": True}, ValueError, "end must be a number of seconds"),
        ({"start": [0, 1, 2]}, ValueError, "start has 3 entries for 1 clips"),
        ({"start": 1.5, "end": 1.0}, MediaError, "not after its start"),
        ({"start": 1e308}, MediaError, "1e"),
    ],
)
def test_wrong_bounds_are_refused(clips, bounds, error, message):
    with pytest.raises(error, match=message):
        processor()(videos=clips[0], **bounds)


@pytest.mark.parametrize(
    "argument",
    [{"data_format": "channels_last"}, {"do_pad": True}, {"return_metadata": True}, {"video_metadata": {"fps": 3}}],
)
def test_arguments_without_effect_are_refused(clips, argument):
    for videos in (clips[0], torch.zeros(4, 3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(TypeError, match=f"unknown keyword argument {next(iter(argument))}="):
            processor()(videos=videos, **argument)


@pytest.mark.parametrize("argument", [{"input_data_format": "channels_last"}, {"do_sample_frames": True}])
def test_arguments_of_arrays_are_refused_for_files(clips, argument):
    for options in (argument, {"videos_kwargs": argument}):
        with pytest.raises(
            ValueError, match=f"{next(iter(argument))}=.* applies to arrays only, but videos holds media files"
        ):
            processor()(videos=clips[0], **options)
    frames = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    assert processor()(videos=frames, **argument, return_tensors="pt")["pixel_values"].shape == (1, 4, 3, 16, 16)


def test_layout_of_decoded_clips_is_known(clips):
    prepare = processor()
    window = prepare.load_clip(clips[0])
    with pytest.raises(
        ValueError,
        match=r"input_data_format='channels_last' applies to arrays only, .* frames \[T, C, H, W\]: leave it",
    ):
        prepare.process_clips(window, input_data_format="channels_last")


def test_bounds_of_arrays_are_refused(clips):
    frames = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    for inputs in ({"videos": frames}, {"videos": [clips[0]], "audio": [np.zeros(16000)], "sampling_rate": 16000}):
        with pytest.raises(ValueError, match="cut the arrays before the call"):
            processor()(**inputs, start=0.5)


def test_fingerprint_does_not_change_with_use(clips, tmp_path):
    """Otherwise `datasets.map` would miss its cache after the first call."""
    prepare = processor()
    before = Hasher.hash(prepare)
    silent = str(render_clip(tmp_path / "silent.mp4", seconds=1.0, audio=None))
    prepare(videos=[silent, clips[0]], num_views=2, return_tensors="pt")
    prepare(audio=(np.ones(16000) * 1000).astype(np.float32), sampling_rate=16000)
    prepare(videos=torch.rand(4, 3, 32, 32))
    assert Hasher.hash(prepare) == before
