"""Views: aggregation and crops against values computed by hand, and a tiny MBT on rendered clips, one view at a time."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from equality import assert_rounding
from rendering import read_number, render_clip, truncated
from safetensors.torch import load_file

from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.views import (
    PROTOCOLS,
    CropViews,
    choose_protocol,
    predict_modalities,
    predict_views,
    spatial_crops,
    view_logits,
    view_transform,
)
from hf_avfusion.metrics.classification import multi_head_accuracies
from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.modeling_mbt import MBTForAudioVisualClassification
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.joining import aggregate_views, mean_probabilities
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.tasks.classification import ClassLabels

LOGITS = torch.tensor([[[2.0, 0.0, -1.0], [-4.0, 1.0, 3.0]]])  # one clip, two views, three classes


def test_logits_are_averaged_before_the_softmax():
    assert aggregate_views(LOGITS).tolist() == [[-1.0, 0.5, 1.0]]
    # The order differs from that of averaged probabilities: class 0 is nearly sure in the first view.
    logits = torch.tensor([[[9.0, 0.0, 0.0], [-20.0, 0.0, 0.0]]])
    assert aggregate_views(logits, "mean_logits").argmax() == 1
    assert aggregate_views(logits, "mean_probabilities").argmax() == 0


def test_mean_of_probabilities_by_hand():
    views = []
    for row in LOGITS[0].tolist():
        total = sum(math.exp(value) for value in row)
        views.append([math.exp(value) / total for value in row])
    expected = [(first + second) / 2 for first, second in zip(*views)]
    assert mean_probabilities(LOGITS).softmax(-1)[0].tolist() == pytest.approx(expected)

    sigmoids = [[1 / (1 + math.exp(-value)) for value in row] for row in LOGITS[0].tolist()]
    expected = [(first + second) / 2 for first, second in zip(*sigmoids)]
    assert mean_probabilities(LOGITS, multi_label=True).sigmoid()[0].tolist() == pytest.approx(expected)


def test_probabilities_near_one_and_zero_keep_their_order():
    logits = torch.tensor([[[50.0, 60.0, -90.0, -80.0], [50.0, 60.0, -90.0, -80.0]]])
    assert mean_probabilities(logits, multi_label=True)[0].tolist() == pytest.approx([50, 60, -90, -80])
    assert mean_probabilities(logits)[0].diff().tolist() == pytest.approx([10, -150, 10])


def test_heads_have_a_softmax_each():
    logits = torch.randn(6, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    splits = {"verb": 3, "noun": 4}
    result = mean_probabilities(logits, class_splits=splits)
    assert torch.allclose(result[:, :3].exp(), logits[..., :3].softmax(-1).mean(1))
    assert torch.allclose(result[:, 3:].exp(), logits[..., 3:].softmax(-1).mean(1))
    # The metrics take the result as logits: actions are ranked by the product of the mean probabilities.
    product = torch.einsum("bv,bn->bvn", result[:, :3].exp(), result[:, 3:].exp()).flatten(1)
    labels = product.argsort(1, descending=True)[:, 4]  # the fifth best: in the top 5 and not the best
    scores = multi_head_accuracies(result.numpy(), torch.stack([labels // 4, labels % 4], 1).numpy(), splits)
    assert (scores["top1_joint"], scores["top5_joint"]) == (0.0, 1.0)


def test_maximum_over_views_is_that_of_the_probabilities():
    result = aggregate_views(LOGITS, "max_logits", multi_label=True)
    assert result.tolist() == [[2.0, 1.0, 3.0]]
    assert_rounding(result.sigmoid(), LOGITS.sigmoid().amax(dim=1))


@pytest.mark.parametrize(
    ("logits", "aggregation", "options", "message"),
    [
        (torch.zeros(2, 3), "mean_logits", {}, "clips, views, classes"),
        (torch.zeros(2, 0, 3), "mean_logits", {}, "at least one view"),
        (LOGITS, "median", {}, "median"),
        (LOGITS, "max_logits", {}, "multi-label"),
        (LOGITS, "mean_probabilities", {"class_splits": {"a": 2, "b": 2}}, "add up"),
        (LOGITS, "mean_probabilities", {"class_splits": {"a": 2, "b": 1}, "multi_label": True}, "leave out"),
    ],
)
def test_wrong_aggregations_are_named(logits, aggregation, options, message):
    with pytest.raises(ValueError, match=message):
        aggregate_views(logits, aggregation, **options)


def test_crops_by_hand():
    frames = torch.arange(4 * 9).reshape(1, 4, 9)  # 4 high, 9 wide: crops begin at 0, ceil(5 / 2) = 3 and 5
    crops = spatial_crops(frames, 4)
    assert crops.shape == (3, 1, 4, 4)
    assert [crop[0, 0, 0].item() for crop in crops] == [0, 3, 5]
    upright = spatial_crops(frames.transpose(1, 2), 4)
    assert torch.equal(upright, crops.transpose(2, 3))
    # Smaller than the short side: the other axis is centred, again rounded up: ceil(1 / 2) = 1.
    assert [crop[0, 0, 0].item() for crop in spatial_crops(frames, 3)] == [9, 12, 15]
    assert torch.equal(spatial_crops(frames, 4, 1)[0], crops[1])


def test_crops_equal_those_of_the_original_code(shared):
    tensors = load_file(shared / "goldens" / "avbert" / "preprocess.safetensors")
    frames = tensors["input/frames_uint8"].permute(0, 3, 1, 2).float()  # 20 x 30, short side to 16
    resized = torch.nn.functional.interpolate(frames, size=(16, 24), mode="nearest")
    for crop, name in zip(spatial_crops((resized / 255 - 0.45) / 0.225, 16), ("crop0", "crop1", "crop2")):
        expected = tensors[f"output/{name}"]  # [frames, C, 16, 16]
        torch.testing.assert_close(crop, expected)


@pytest.mark.parametrize(("size", "number", "message"), [(5, 3, "4x9"), (0, 3, "crop of 0"), (4, 2, "1 or 3")])
def test_errors_name_the_wrong_crop(size, number, message):
    with pytest.raises(ValueError, match=message):
        spatial_crops(torch.zeros(3, 4, 9), size, number)


# ---- with a model, on rendered clips ----


def tiny_model(**options):
    torch.manual_seed(0)
    config = MBTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, fusion_layer=1, image_size=16,
        patch_size=8, num_frames=2, num_mel_bins=16, spectrogram_length=16, **{"num_labels": 5, **options},
    )  # fmt: skip
    model = MBTForAudioVisualClassification(config).eval()
    with torch.no_grad():  # a new head gives nearly the same logits for every input
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def processor(**video):
    return MBTProcessor(
        video_processor=AVFusionVideoProcessor(**{"size": {"shortest_edge": 16}, "crop_size": 16, **video}),
        feature_extractor=AVFusionFeatureExtractor.from_preset("mbt", num_mel_bins=16, spectrogram_length=16),
        num_frames=2,
        span=0.16,
        audio_seconds=0.16,
    )


@pytest.fixture(scope="module")
def rows():
    """Seven clips of 1 to 1.5 s with numbered frames and a rising tone, so that all views differ; two lack a modality."""
    kinds = [{}, {"audio": None}, {}, {"num_frames": 0, "seconds": 1.2}, {}, {}, {"size": (64, 96)}]
    return [
        {
            "clip_id": f"clip-{index}",
            "video": {"bytes": render_clip(**{"num_frames": 25 + 2 * index, "size": (96, 64), **kind}), "path": None},
            "start": None,
            "end": None,
            "label": index % 5,
        }
        for index, kind in enumerate(kinds)
    ]


def logits_one_by_one(model, transform, row):
    """Logits [views, classes] of a clip, with one forward pass per view."""
    sample = transform(row)
    inputs = [name for name in ("pixel_values", "input_features") if name in sample]
    with torch.no_grad():
        return torch.cat(
            [
                model(**{name: sample[name][view : view + 1] for name in inputs}).logits
                for view in range(len(sample[inputs[0]]))
            ]
        )


@pytest.mark.parametrize(("batch_size", "views_per_step"), [(1, 1), (3, 5), (7, 64)])
def test_four_views_are_the_mean_of_single_views(rows, batch_size, views_per_step):
    model, transform = tiny_model(), ClipTransform(processor(), num_views=4)
    result = predict_views(model, ClipStream(rows, transform), batch_size=batch_size, views_per_step=views_per_step)
    single = torch.stack([logits_one_by_one(model, transform, row) for row in rows])
    assert single.shape == (7, 4, 5)
    assert single.std(dim=1).max() > 0.01  # the views differ
    torch.testing.assert_close(result.logits, single.mean(dim=1), atol=1e-5, rtol=1e-5)
    assert result.labels.tolist() == [row["label"] for row in rows]
    assert result.clip_ids == [row["clip_id"] for row in rows]
    assert result.skipped == 0


def test_windows_cover_the_clip_from_start_to_end(rows):
    """The frame numbers show the positions of the four windows."""
    large = MBTProcessor(
        video_processor=AVFusionVideoProcessor(do_resize=False, do_center_crop=False),
        feature_extractor=processor().feature_extractor,
        num_frames=2, span=0.16, audio_seconds=0.16,
    )  # fmt: skip
    frames = ClipTransform(large, num_views=4)(rows[0])["pixel_values"]
    numbers = [read_number(((view[0] + 1) * 127.5).round().to(torch.uint8)) for view in frames]
    assert numbers == [0, 7, 14, 21]  # 25 frames, windows of 4: trunc(linspace(0, 21, 4))


def test_probabilities_follow_the_problem_type(rows):
    transform = ClipTransform(processor(), num_views=5)
    for options in ({}, {"problem_type": "multi_label_classification"}, {"class_splits": {"a": 2, "b": 3}}):
        model = tiny_model(**options)
        stream = ClipStream(rows, ClipTransform(processor(), (), num_views=5))
        result = predict_views(model, stream, aggregation="mean_probabilities")
        assert result.labels is None
        single = torch.stack([logits_one_by_one(model, transform, row) for row in rows])
        if "problem_type" in options:
            torch.testing.assert_close(result.logits.sigmoid(), single.sigmoid().mean(1))
            best = predict_views(model, stream, aggregation="max_logits").logits
            torch.testing.assert_close(best, single.amax(1), atol=1e-5, rtol=1e-5)
        elif "class_splits" in options:
            expected = torch.cat([single[..., :2].softmax(-1).mean(1), single[..., 2:].softmax(-1).mean(1)], dim=1)
            torch.testing.assert_close(result.logits.exp(), expected)
        else:
            torch.testing.assert_close(result.logits.softmax(-1), single.softmax(-1).mean(1))


def test_float_labels_imply_multi_label(rows):
    model = tiny_model()  # without problem_type
    listed = [{**row, "label": [row["label"]]} for row in rows]
    transform = ClipTransform(processor(), ClassLabels("label", 5), num_views=2)
    result = predict_views(model, ClipStream(listed, transform), aggregation="max_logits")
    assert torch.equal(result.labels, torch.eye(5)[[row["label"] for row in rows]])


def test_thirty_views_of_ten_windows_and_three_crops(rows):
    model = tiny_model()
    whole = ClipTransform(processor(do_center_crop=False), num_views=10)
    cropped = CropViews(whole, 16)
    for row in (rows[0], rows[6]):  # wide and tall frames
        pixels, sample = whole(row)["pixel_values"], cropped(row)
        assert sample["pixel_values"].shape == (30, 2, 3, 16, 16)
        assert sample["input_features"].shape == (30, 16, 16)
        assert torch.equal(sample["pixel_values"][3 * 7], pixels[7, ..., :16, :16])
        assert torch.equal(sample["pixel_values"][3 * 7 + 2], pixels[7, ..., -16:, -16:])
        assert_rounding(sample["input_features"][3 * 7 + 1], whole(row)["input_features"][7])
    result = predict_views(model, ClipStream(rows, cropped), aggregation="mean_probabilities", batch_size=2)
    single = torch.stack([logits_one_by_one(model, cropped, row) for row in rows])
    torch.testing.assert_close(result.logits.softmax(-1), single.softmax(-1).mean(1))
    assert CropViews(ClipTransform(processor(do_center_crop=False)), 16)(rows[0])["pixel_values"].shape[0] == 3
    with pytest.raises(ValueError, match="do_center_crop=False"):
        CropViews(ClipTransform(processor()), 16)


def test_single_views_need_no_views_axis(rows):
    model, transform = tiny_model(), ClipTransform(processor())
    result = predict_views(model, ClipStream(rows, transform), batch_size=3)
    with torch.no_grad():
        expected = model(**AVCollator()([transform(row) for row in rows[:3]])).logits
    torch.testing.assert_close(result.logits[:3], expected, atol=1e-5, rtol=1e-5)


def test_broken_clips_are_counted_and_the_training_mode_is_restored(rows):
    broken = {
        **rows[0],
        "clip_id": "broken",
        "video": {"bytes": truncated(rows[0]["video"]["bytes"], 0.3), "path": None},
    }
    model = tiny_model(drop_path_rate=0.9)
    transform = ClipTransform(processor(), num_views=2)
    expected = torch.stack([logits_one_by_one(model, transform, row).mean(0) for row in rows[:2]])
    model.train()  # with stochastic depth of 0.9, training mode would change the logits
    stream = ClipStream([rows[0], broken, rows[1]], transform)
    for _ in range(2):
        result = predict_views(model, stream)
        torch.testing.assert_close(result.logits, expected, atol=1e-5, rtol=1e-5)
        assert (result.clip_ids, result.skipped) == (["clip-0", "clip-1"], 1)
        assert model.training
    with pytest.raises(ValueError, match=r"no clips to evaluate \(1 could not be decoded\)"):
        predict_views(model, ClipStream([broken], ClipTransform(processor())))


def test_workers_do_not_change_predictions(rows):
    model, transform = tiny_model(), ClipTransform(processor(), num_views=2)
    alone = predict_views(model, ClipStream(rows, transform))
    shared_out = predict_views(model, ClipStream(rows, transform), num_workers=2)
    assert shared_out.clip_ids == alone.clip_ids
    torch.testing.assert_close(shared_out.logits, alone.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(shared_out.labels, alone.labels)


def test_each_modality_alone_from_one_decoding(rows, caplog):
    """Equals decoding that track only. Clips without the modality are left out and counted."""
    model, decoded = tiny_model(), []

    def transform(row, generator):
        decoded.append(row["clip_id"])
        return ClipTransform(processor(), num_views=3)(row, generator)

    transform.num_views = 3
    results = predict_modalities(model, ClipStream(rows, transform), batch_size=3, views_per_step=4)
    assert decoded == [row["clip_id"] for row in rows]
    assert torch.equal(
        results["av"].logits, predict_views(model, ClipStream(rows, transform), batch_size=3, views_per_step=4).logits
    )
    for key, modality, missing in (("a", "audio", "clip-1"), ("v", "video", "clip-3")):
        alone = ClipTransform(processor(), num_views=3, modalities=(modality,))
        expected = predict_views(model, ClipStream(rows, alone))
        assert expected.skipped == 1  # the clip without this modality
        assert (results[key].skipped, results[key].missing_modality) == (0, 1)
        assert results[key].clip_ids == [row["clip_id"] for row in rows if row["clip_id"] != missing]
        assert torch.equal(results[key].labels, expected.labels)
        torch.testing.assert_close(results[key].logits, expected.logits, atol=1e-5, rtol=1e-5)
    silent = ClipStream([rows[1]], ClipTransform(processor()))
    message = r"no clips with audio to evaluate \(0 could not be decoded, 1 do not have this modality\)"
    with pytest.raises(ValueError, match=message):
        predict_modalities(model, silent, ("a",))
    caplog.clear()
    assert list(predict_modalities(model, silent, ("a", "v"))) == ["v"]
    assert "no clips with audio to evaluate" in caplog.text
    with pytest.raises(ValueError, match=r"got \['audio'\]"):
        predict_modalities(model, silent, ("audio",))


class TwoInOne:
    """Stand-in for `Ranks` of two processes that run one after the other; the second one gathers the values of both."""

    world_size = 2

    def __init__(self, rank, gathered):
        self.rank, self.gathered = rank, gathered

    def all_gather(self, value):
        self.gathered.append(value)
        return self.gathered


@pytest.mark.parametrize("random_access", [False, True])
def test_processes_share_the_clips(rows, random_access):
    """Each of the seven clips is scored once, by one of two processes, and the order is that of the rows."""
    model, transform = tiny_model(), ClipTransform(processor(), num_views=2)
    samples = [transform(row) for row in rows] if random_access else ClipStream(rows, transform)
    options = {"batch_size": 2, "num_views": 2 if random_access else None}
    whole = predict_modalities(model, samples, ("av", "a"), **options)
    gathered = []
    first = predict_modalities(model, samples, ("av", "a"), **options, ranks=TwoInOne(0, gathered))
    assert 0 < len(first["av"].clip_ids) < 7
    both = predict_modalities(model, samples, ("av", "a"), **options, ranks=TwoInOne(1, gathered))
    for key in ("av", "a"):
        assert both[key].clip_ids == whole[key].clip_ids
        assert torch.equal(both[key].labels, whole[key].labels)
        assert both[key].missing_modality == whole[key].missing_modality
        torch.testing.assert_close(both[key].logits, whole[key].logits, atol=1e-5, rtol=1e-5)


def test_a_stream_that_cannot_be_divided_is_refused(rows):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="Stream cannot be divided among 2 processes"):
        predict_views(tiny_model(), Stream(), ranks=TwoInOne(0, []))


def test_protocols_are_chosen_and_built(rows):
    assert choose_protocol() is None
    assert choose_protocol("mbt") == PROTOCOLS["mbt"]
    mine = choose_protocol("avbert/ucf101", num_views=2)
    assert (mine.num_views, mine.num_crops, mine.total, mine.aggregation) == (2, 3, 6, "mean_probabilities")
    assert choose_protocol(num_crops=3).total == 3
    for wrong, message in (
        ({"name": "mtb"}, "pass one of mbt"),
        ({"num_views": 0}, "at least 1 view"),
        ({"num_crops": 2}, "1 or 3 crops"),
        ({"aggregation": "median"}, "aggregation must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_protocol(**wrong)

    assert view_transform(processor(), None)(rows[0])["pixel_values"].shape == (2, 3, 16, 16)
    assert view_transform(processor(), choose_protocol("mbt"))(rows[0])["pixel_values"].shape == (4, 2, 3, 16, 16)
    whole = processor(do_center_crop=True)
    sample = view_transform(whole, mine)(rows[0])
    assert sample["pixel_values"].shape == (6, 2, 3, 16, 16)
    assert not torch.equal(sample["pixel_values"][0], sample["pixel_values"][2])
    assert whole.video_processor.do_center_crop  # only a copy was changed
    fixed = processor(size={"height": 16, "width": 16})
    with pytest.raises(ValueError, match="resizes the short side"):
        view_transform(fixed, mine)


def test_a_forward_pass_has_at_most_views_per_step_rows():
    seen = []

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, pixel_values, modality_mask):
            seen.append(len(pixel_values))
            assert pixel_values.dtype == torch.bfloat16
            assert modality_mask.shape == (len(pixel_values), 2)
            assert not torch.is_grad_enabled()
            return type("Output", (), {"logits": pixel_values.flatten(1)[:, :2] * self.weight})

    pixels = torch.arange(2 * 7 * 4.0).reshape(2, 7, 1, 1, 2, 2)
    batch = {"pixel_values": pixels, "modality_mask": torch.ones(2, 2, dtype=torch.bool), "labels": torch.zeros(2)}
    logits = view_logits(Counting(), batch, views=7, views_per_step=4)
    assert seen == [4, 4, 4, 2]
    assert logits.dtype == torch.float32
    assert torch.equal(logits, pixels[:, :, 0, 0, 0])


def test_sequences_of_clips_are_not_taken_for_views():
    class Sequences(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, pixel_values=None, input_features=None, modality_mask=None):
            given = pixel_values if pixel_values is not None else input_features
            assert given.shape[1] == 5  # clips
            return SimpleNamespace(logits=given.flatten(1)[:, :3] * self.weight)

    model, frames = Sequences(), torch.rand(2, 5, 2, 3, 4, 4)
    assert view_logits(model, {"pixel_values": frames}).shape == (2, 1, 3)
    views = frames.unsqueeze(1).repeat(1, 4, 1, 1, 1, 1, 1)
    assert view_logits(model, {"pixel_values": views}, views=4).shape == (2, 4, 3)
    assert view_logits(model, {"input_features": torch.rand(2, 5, 8, 6)}).shape == (2, 1, 3)  # not five views


@pytest.mark.parametrize("views", [1, 2])
def test_planes_of_a_spectrogram_are_not_taken_for_views(views):
    """MBT accepts its spectrogram as three planes [batch, 3, time, mel]."""
    model, planes = tiny_model(), torch.randn(2, *([views] if views > 1 else []), 3, 16, 16)
    logits = view_logits(model, {"input_features": planes}, views=views)
    with torch.no_grad():
        expected = model(input_features=planes.reshape(2 * views, 3, 16, 16)).logits
    assert logits.shape == (2, views, 5)
    torch.testing.assert_close(logits.flatten(0, 1), expected)
    samples = [
        {"input_features": each, "has_video": False, "has_audio": True, "clip_id": number}
        for number, each in enumerate(planes)
    ]
    predicted = predict_views(model, samples, num_views=views)
    torch.testing.assert_close(predicted.logits, logits.mean(dim=1), atol=1e-5, rtol=1e-5)


def test_a_single_crop_of_a_single_window_has_no_axis_of_views(rows):
    whole = ClipTransform(processor(do_center_crop=False))
    sample = CropViews(whole, 16, num_crops=1)(rows[0])
    assert torch.equal(sample["pixel_values"], spatial_crops(whole(rows[0])["pixel_values"], 16, 1)[0])
    assert sample["input_features"].shape == whole(rows[0])["input_features"].shape


def test_clips_are_read_lazily():
    """At most one batch of clips waits at any time, even for a long stream."""
    model, read, waiting = tiny_model(), [], []

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            for index in range(40):
                read.append(index)
                pixels = torch.full((2, 2, 3, 16, 16), float(index))
                yield {"pixel_values": pixels, "has_video": True, "has_audio": False, "clip_id": index}

    model.register_forward_hook(lambda *_: waiting.append(len(read) - len(waiting) * 2))
    result = predict_views(
        model, Stream(), num_views=2, batch_size=4, views_per_step=4
    )  # two clips of two views a step
    assert result.clip_ids == list(range(40))
    assert len(waiting) == 20
    assert max(waiting) == 4


def test_views_that_nothing_states_are_refused():
    samples = [{"pixel_values": torch.zeros(2, 2, 3, 16, 16), "clip_id": 0}]
    with pytest.raises(
        ValueError, match=r"an axis more than one view.*\[frames, channels, height, width\]: pass num_views="
    ):
        predict_views(tiny_model(), samples)


def test_errors_name_the_wrong_batch():
    model = tiny_model()
    with pytest.raises(ValueError, match="neither"):
        view_logits(model, {"labels": torch.zeros(2)})
    uneven = {"pixel_values": torch.zeros(1, 3, 2, 3, 16, 16), "input_features": torch.zeros(1, 2, 16, 16)}
    with pytest.raises(ValueError, match=r"Expected 3 views per clip .* got pixel_values \(1, 3,"):
        view_logits(model, uneven, views=3)
    with pytest.raises(ValueError, match=r"of the same clips, got pixel_values \(1, "):
        view_logits(model, {**uneven, "input_features": torch.zeros(2, 16, 16)})
    with pytest.raises(ValueError, match="at least 1"):
        view_logits(model, uneven, views_per_step=0)
    with pytest.raises(ValueError, match="'mode'"):
        predict_views(model, [], aggregation="mode")


def test_published_protocols_can_be_used():
    for protocol in PROTOCOLS.values():
        multi_label = protocol.aggregation == "max_logits"
        views = torch.from_numpy(np.random.default_rng(0).normal(size=(2, protocol.num_views * protocol.num_crops, 3)))
        assert aggregate_views(views, protocol.aggregation, multi_label=multi_label).shape == (2, 3)
        assert spatial_crops(torch.zeros(8, 12), 8, protocol.num_crops).shape[0] == protocol.num_crops
    facts = {name: (protocol.num_views, protocol.num_crops) for name, protocol in PROTOCOLS.items()}
    assert facts["mbt"] == facts["avmae"] == (4, 1)
    assert facts["mmt"] == (5, 1)
    assert facts["avbert/ucf101"] == (10, 3)
