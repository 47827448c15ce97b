"""The timeline of events: bars at their time and in their lane, and the events of a file."""

import numpy as np
import pytest
import torch
from PIL import Image
from rendering import render_clip
from travellers import traveller

from hf_avfusion.visualization.timeline import draw_timeline, explain_events

EVENTS = [
    {"label": "bell", "start": 0.0, "end": 2.0, "score": 0.9},
    {"label": "background", "start": 2.0, "end": 5.0, "score": 0.6},
]
BLUE = (0, 0x72, 0xB2)


def draw(path, events=EVENTS, window=(0.0, 5.0), **more) -> np.ndarray:
    draw_timeline(path, events, window, **more)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def columns_of(image: np.ndarray, colour=BLUE) -> np.ndarray:
    return np.nonzero((abs(image - colour).sum(axis=-1) < 12).any(axis=0))[0]


@pytest.mark.parametrize("missing", [(), ("frames",), ("spectrogram",)])
def test_frames_and_spectrogram_add_their_height(tmp_path, missing):
    given = {
        "frames": torch.randint(0, 255, (12, 3, 48, 64), dtype=torch.uint8),
        "spectrogram": torch.randn(5, 20, 32),
    }
    alone = draw(tmp_path / "alone.png")
    image = draw(tmp_path / "figure.png", **{name: value for name, value in given.items() if name not in missing})
    assert image.shape[1] == pytest.approx(13.6 * 110, abs=2)
    assert image.shape[0] > alone.shape[0] + 70


def test_an_event_is_drawn_at_its_time(tmp_path):
    early = columns_of(draw(tmp_path / "early.png"))
    late = [{**EVENTS[0], "start": 3.0, "end": 5.0}, {**EVENTS[1], "start": 0.0, "end": 3.0}]
    late = columns_of(draw(tmp_path / "late.png", late))
    assert np.ptp(early) == pytest.approx(np.ptp(late), abs=4)
    assert late.min() - early.min() == pytest.approx(1.5 * np.ptp(early), abs=8)


def test_sound_is_drawn_when_it_was_heard(tmp_path):
    """One bright second for each of two segments of a clip of 5 s."""
    sound = torch.tensor([0.0, 1.0]).repeat(2, 50, 16)
    places = []
    for name, heard in (("start", [(0.0, 1.0), (2.5, 3.5)]), ("end", [(1.0, 2.0), (2.5, 3.5)])):
        plain = draw(tmp_path / "plain.png", spectrogram=sound, heard=[(2.5, 3.5), (2.5, 3.5)])
        image = draw(tmp_path / f"{name}.png", spectrogram=sound, heard=heard)
        places.append(np.nonzero((image != plain).any(axis=(0, 2)))[0])
    assert np.ptp(places[0]) == pytest.approx(np.ptp(places[1]), abs=8)
    assert places[0].max() == pytest.approx(places[1].min(), abs=8)


def test_right_events_are_outlined(tmp_path):
    """The outline is where the predicted bar is not."""
    plain = draw(tmp_path / "plain.png")
    image = draw(tmp_path / "truth.png", truth=[{"label": "bell", "start": 3.0, "end": 5.0}])
    changed = np.nonzero((image != plain).any(axis=(0, 2)))[0]
    assert changed.min() > columns_of(plain).max()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"events": []}, "nothing to draw"),
        ({"window": (1.0, 1.0)}, "window"),
        ({"frames": torch.zeros(2, 3, 8, 8)}, "uint8"),
        ({"frames": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "times": [0.0]}, "one value per frame"),
        ({"spectrogram": torch.zeros(8)}, r"\[time, mel\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "figure.png", **given)
    assert not list(tmp_path.iterdir())


def test_the_events_of_a_file(tmp_path):
    model, processor = traveller("lavish")
    (tmp_path / "clip.mp4").write_bytes(render_clip(seconds=2.0))
    events = explain_events(model, processor, str(tmp_path / "clip.mp4"), path=tmp_path / "events.png")
    assert events[0]["start"] == 0.0
    assert events[-1]["end"] == pytest.approx(2.0, abs=0.1)
    assert {event["label"] for event in events} <= set(model.config.id2label.values())
    assert Image.open(tmp_path / "events.png").size[0] == pytest.approx(13.6 * 110, abs=2)
