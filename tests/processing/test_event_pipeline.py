"""pipeline("audio-visual-event-localization"): segments of one class become events, for localisers of every architecture."""

import pytest
import torch
from rendering import render_clip
from transformers import pipeline
from travellers import avmae, lavish, lavish_processor, mbt, processor

from hf_avfusion import AVMAEProcessor
from hf_avfusion.processing.event_pipeline import spans_of

LABELS = {"id2label": {0: "bell", 1: "dog", 2: "background"}, "label2id": {"bell": 0, "dog": 1, "background": 2}}


def segments(*labels: str) -> list[dict]:
    return [
        {"start": 0.5 * number, "end": 0.5 * (number + 1), "labels": [{"label": label, "score": 0.1 * (number + 1)}]}
        for number, label in enumerate(labels)
    ]


def test_successive_segments_of_one_label_are_a_span():
    spans = spans_of(segments("bell", "bell", "background", "dog", "bell"), {"background"})
    assert [(each["label"], each["start"], each["end"]) for each in spans] == [
        ("bell", 0.0, 1.0), ("dog", 1.5, 2.0), ("bell", 2.0, 2.5),
    ]  # fmt: skip
    assert [each["score"] for each in spans] == pytest.approx([0.15, 0.4, 0.5])
    heads = [{**each, "labels": {"verb": each["labels"]}} for each in segments("cut", "stir")]
    assert [each["label"] for each in spans_of(heads)["verb"]] == ["cut", "stir"]


@pytest.mark.parametrize("name", ["lavish", "avmae"])
def test_localisers_of_every_architecture(name):
    if name == "lavish":
        model, its_processor = lavish(**LABELS), lavish_processor()
    else:
        model, its_processor = avmae(num_segments=4, **LABELS), processor(AVMAEProcessor)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    options = {"model": model.eval(), "processor": its_processor, "device": "cpu"}
    clip = render_clip(seconds=0.8, num_frames=20)
    classes = pipeline("audio-visual-classification", **options)(clip, top_k=None)
    localize = pipeline("audio-visual-event-localization", **options)
    every = localize(clip, background=None)
    assert (every[0]["start"], every[-1]["end"]) == (classes[0]["start"], classes[-1]["end"])
    for each in classes:
        (span,) = [span for span in every if span["start"] <= each["start"] and each["end"] <= span["end"]]
        assert span["label"] == each["labels"][0]["label"]
    left = localize([clip], return_modalities=True, background=[every[0]["label"]], batch_size=2)[0]
    assert left.keys() == {"both", "video", "audio"}
    assert every[0]["label"] not in {span["label"] for span in left["both"]}


def test_what_is_refused():
    with pytest.raises(ValueError, match="gives one answer for a clip"):
        pipeline("audio-visual-event-localization", model=mbt(), processor=processor(), device="cpu")
    localize = pipeline("audio-visual-event-localization", model=lavish(), processor=lavish_processor(), device="cpu")
    with pytest.raises(TypeError, match="has no arguments top_k; pass one of: background"):
        localize(render_clip(seconds=0.8), top_k=3)
