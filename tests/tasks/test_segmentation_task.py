"""Segmentation from rendered clips to masks: labels, transform, collator, training, evaluation, and what is refused."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lavish_runs import PLAIN, finetune, load_script, losses
from PIL import Image
from rendering import render_clip
from tiny_lavish import tiny_segmentation
from transformers import AutoModelForSemanticSegmentation, Swinv2Model

from hf_avfusion import (
    AutoModelForAudioVisualSegmentation,
    AVFusionFeatureExtractor,
    AVTrainer,
    AVTrainingArguments,
    LavishForSegmentation,
    LavishProcessor,
)
from hf_avfusion.data.augmentation import FrameAugmentation
from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.data.segmentation import MaskCollator, MaskTransform
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.synthetic.sounding_shapes import render
from hf_avfusion.evaluation.clips import label_rows
from hf_avfusion.evaluation.costs import PeakMemory
from hf_avfusion.evaluation.runs import check_modalities, evaluate_checkpoint, load_checkpoint, protocol_for
from hf_avfusion.media.sources import MediaError
from hf_avfusion.metrics.segmentation import segmentation_scores
from hf_avfusion.models.lavish.losses_lavish import mask_loss
from hf_avfusion.models.lavish.processing_lavish import frame_processor
from hf_avfusion.tasks import TASKS, task_of
from hf_avfusion.tasks.segmentation import MaskLabels

SEGMENTATION = TASKS["segmentation"]
SIDE = 64  # of frames and spectrograms; masks have 32
DECODER = {"mask_size": 32, "decoder_map_widths": [4, 4, 4, 4], "decoder_width": 8, "decoder_head_widths": [6, 4]}
SHAPES = {"width": 48, "height": 32, "duration": 2, "num_classes": 2, "num_proc": 1, "progress": False}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    render(folder, num_train=8, num_validation=0, num_test=4, rows_per_shard=8, **SHAPES)
    return folder


@pytest.fixture(scope="module")
def rows(shards):
    return list(load_rows("sounding_shapes", "test", source=shards).rows)


def make_processor(**fields) -> LavishProcessor:
    audio = AVFusionFeatureExtractor.from_preset("lavish_avs", num_mel_bins=SIDE, spectrogram_length=SIDE)
    window = {"num_segments": 2, "segment_seconds": 0.8, "segment_frame": 0.5, **fields}
    return LavishProcessor(frame_processor(SIDE), audio, **window)


def make_model(**fields) -> LavishForSegmentation:
    torch.manual_seed(0)
    return LavishForSegmentation(tiny_segmentation(**{**DECODER, **fields}))


def picture(values: np.ndarray, mode: str | None = None) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(values, mode).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def half(side: int = 8, value: int = 255) -> np.ndarray:
    """The left half is the object."""
    values = np.zeros((side, side), np.uint8)
    values[:, : side // 2] = value
    return values


# ------------------------------------------------------------------------------------------------------------- labels


def test_masks_are_read_from_pictures():
    palette = Image.fromarray(half(8, 1)).convert("P")
    palette.putpalette([0, 0, 0, 0, 128, 0])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    row = {"clip_id": "a", "masks": [picture(half()), {"bytes": buffer.getvalue()}, None, picture(half() * 0)]}
    masks = MaskLabels()(row)
    assert masks.dtype == torch.uint8
    expected = torch.from_numpy(half(8, 1))
    assert torch.equal(
        masks, torch.stack([expected, expected, torch.full((8, 8), 255, dtype=torch.uint8), expected * 0])
    )


def test_what_is_no_mask_is_refused(tmp_path):
    grey = picture(np.arange(64, dtype=np.uint8).reshape(8, 8))
    clear = picture(np.zeros((8, 8, 4), np.uint8))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    for masks, message in (
        ([grey], r"a, masks\[0\]: a mask is black \(0\) and one other value, got 64 values \(0, 1, 2, 3, ...\)"),
        ([picture(half()), picture(half(16))], "its masks must have one size, got 8x8, 16x16"),
        ([clear], "transparent pixels"),
        ([], "must hold a list of masks"),
        ([None, None], "must hold a list of masks"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskLabels()({"clip_id": "a", "masks": masks})
    for broken in ({"path": str(tmp_path / "broken.png")}, {"bytes": b"", "path": None}, {"path": "http://a/b.png"}):
        with pytest.raises(MediaError):
            MaskLabels()({"clip_id": "a", "masks": [broken]})
    with pytest.raises(ValueError, match="has no column 'masks'"):
        MaskLabels()({"clip_id": "a"})
    with pytest.raises(ValueError, match="one column"):
        MaskLabels(["masks", "more"])


# ---------------------------------------------------------------------------------------------------- transform, collator


def test_a_clip_becomes_a_batch_with_masks(rows):
    transform = MaskTransform(make_processor(), MaskLabels())
    sample = transform(rows[0])
    assert sample["labels"].shape == (2, 32, 48)  # as in the pictures
    alone = transform({**rows[1], "masks": rows[1]["masks"][:1]})  # the first second has a mask, as in S4's training
    assert (alone["labels"][1] == 255).all()
    assert set(alone["labels"][0].unique().tolist()) <= {0, 1}
    batch = MaskCollator.for_model(tiny_segmentation(**DECODER))([sample, alone])
    assert batch["labels"].dtype == torch.uint8
    assert batch["labels"].shape == (2, 2, 32, 32)
    assert batch["pixel_values"].shape == (2, 2, 3, SIDE, SIDE)
    nearest = sample["labels"][0][:, (torch.arange(32) + 0.5).mul(1.5).long()]
    assert torch.equal(batch["labels"][0, 0], nearest)


def test_the_mask_is_that_of_its_frame(rows):
    """In the stretched frame, the pixels of the sounding shape differ from the background."""
    for row in rows:
        sample = MaskTransform(make_processor(), MaskLabels())(row)
        masks = MaskCollator((SIDE, SIDE))([sample])["labels"][0]
        background = sample["pixel_values"].flatten(2).median(dim=2).values[:, :, None, None]
        seen = (sample["pixel_values"] - background).abs().amax(dim=1) > 0.5
        for frame, mask in zip(seen, masks):
            assert (frame & (mask > 0)).sum() >= 0.95 * mask.sum()


def test_wrong_numbers_of_masks_are_refused(rows):
    row = {**rows[0], "masks": rows[0]["masks"][:2]}
    with pytest.raises(ValueError, match=r"has 2 masks, but the processor cuts clips into num_segments=3"):
        MaskTransform(make_processor(num_segments=3), MaskLabels())(row)
    silent = {**row, "video": {"bytes": render_clip(num_frames=0, seconds=2.0), "path": None}}
    with pytest.raises(MediaError, match="has no video"):
        MaskTransform(make_processor(), MaskLabels())(silent)
    cropping = make_processor()
    cropping.video_processor.do_center_crop, cropping.video_processor.crop_size = True, {"height": 32, "width": 32}
    with pytest.raises(ValueError, match="masks cover whole frames"):
        MaskTransform(cropping, MaskLabels())


def test_augmentation_moves_masks_with_frames():
    augmentation = FrameAugmentation(crop=24, shortest_edge=32, scale=(0.9, 1.3), color=0.0, grayscale=0.0)
    frames = torch.from_numpy(half(64)).expand(4, 3, 64, 64)
    masks = torch.from_numpy(half(16, 1)).expand(2, 16, 16)
    for seed in range(6):
        pixels, moved = augmentation.with_masks(frames, masks, torch.Generator().manual_seed(seed))
        assert torch.equal(pixels, augmentation(frames, torch.Generator().manual_seed(seed)))
        wrong = (pixels[0, 0] > 127) != (moved[0] > 0)
        assert wrong.float().mean() <= 1 / 24  # the edge, by one column
    with pytest.raises(ValueError, match="without their masks"):
        MaskTransform(make_processor(), MaskLabels(), mode="train", augmentation=lambda frames, generator: frames)


def test_the_collator_refuses_what_masks_do_not_allow():
    for options in ({"mixup_alpha": 0.3}, {"modality_dropout": 0.5}):
        with pytest.raises(ValueError, match="mask"):
            MaskCollator(**options)
    features = torch.zeros(2, 4, 4)
    samples = [
        {"input_features": features, "labels": torch.zeros(2, side, side, dtype=torch.uint8)} for side in (8, 16)
    ]
    with pytest.raises(ValueError, match="masks of one batch must have one shape"):
        MaskCollator()(samples)


# ------------------------------------------------------------------------------------------------------------ metrics


def test_metrics_are_those_of_the_published_rules():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 8, 8, generator=generator)
    labels = (torch.rand(3, 2, 8, 8, generator=generator) > 0.7).to(torch.uint8)
    labels[1, 0] = 0
    found = SEGMENTATION.metrics(*SEGMENTATION.reduce(logits, labels, None), None)
    expected = segmentation_scores(logits.numpy(), labels.numpy())
    assert found["miou"] == pytest.approx(expected.miou)
    assert found["f_score"] == pytest.approx(expected.f_score)
    assert (found["clips_without_object"], found["scored_segments"]) == (0, 6)
    labels[2] = 255  # a clip without masks, and a segment without one
    labels[0, 1] = 255
    found = SEGMENTATION.metrics(*SEGMENTATION.reduce(logits, labels, None), None)
    expected = segmentation_scores(
        [logits[0, :1].numpy(), logits[1].numpy()], [labels[0, :1].numpy(), labels[1].numpy()]
    )
    assert found["miou"] == pytest.approx(expected.miou)
    assert found["scored_segments"] == 3
    with pytest.raises(ValueError, match="no segment of the evaluated clips has a mask"):
        SEGMENTATION.metrics(*SEGMENTATION.reduce(logits[2:], labels[2:], None), None)


def test_the_loss_of_each_clip_is_the_models():
    config, logits = SimpleNamespace(mask_loss="bce_of_probabilities"), torch.randn(2, 2, 4, 4)
    labels = torch.ones(2, 2, 4, 4, dtype=torch.uint8)
    losses_of_clips = SEGMENTATION.loss(logits, labels, config)
    assert losses_of_clips.mean() == pytest.approx(mask_loss(logits, labels, config.mask_loss).item())


# --------------------------------------------------------------------------------------------------------------- runs


def make_trainer(folder, model, evaluated, **options) -> AVTrainer:
    args = AVTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, per_device_eval_batch_size=2, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="no", learning_rate=1e-2, **options,
    )  # fmt: skip
    return AVTrainer(model, args, train_dataset=evaluated, eval_dataset=evaluated, processing_class=make_processor())


def test_a_tiny_model_learns_masks(rows, tmp_path):
    stream = ClipStream(rows, MaskTransform(make_processor(), MaskLabels()))
    trainer = make_trainer(tmp_path, make_model(adapter=None), stream, max_steps=30, logging_steps=1)
    assert trainer.task is SEGMENTATION
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_miou"] > before["eval_miou"] + 0.2
    assert after["eval_loss"] < before["eval_loss"]
    predicted = trainer.predict(stream)
    assert predicted.predictions.shape == (4, 2, 32, 32)
    assert predicted.metrics["test_miou"] == pytest.approx(after["eval_miou"])


def test_masks_do_not_pile_up(tmp_path):
    """Masks of 1 MiB a clip at float32: a hundred more clips need no more memory."""
    model = make_model(mask_size=512, decoder_map_widths=[2, 2, 2, 2], decoder_width=2, decoder_head_widths=[2, 2])
    sample = {
        "clip_id": "a", "has_video": True, "has_audio": True, "pixel_values": torch.zeros(2, 3, SIDE, SIDE),
        "input_features": torch.zeros(2, SIDE, SIDE), "labels": torch.zeros(2, 512, 512, dtype=torch.uint8),
    }  # fmt: skip
    streams = [
        ClipStream([{"clip_id": n} for n in range(number)], lambda row, generator=None: sample) for number in (6, 6, 60)
    ]
    trainer, peaks = make_trainer(tmp_path, model, streams[0], max_steps=1), []
    for stream in streams:
        with PeakMemory("cpu", 0.0) as peak:
            trainer.evaluate(stream)
        peaks.append(peak.mib)
    if None in peaks:
        pytest.skip("this system does not report peak memory")
    assert peaks[2] - peaks[1] < 50  # kept to the end, logits and labels would need 135 MiB more


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A checkpoint of the training script."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    config = tiny_segmentation().backbone_config
    Swinv2Model(config).save_pretrained(folder / "backbone")
    fields = {**DECODER, "adapter": {"num_tokens": 2, "reduction": 4, "groups": 1}}
    command = [
        "--data", "sounding_shapes", "--source", shards, "--label_columns", "masks", "--num_segments", "2",
        "--from_backbone", folder / "backbone", "--config", json.dumps(fields), "--output_dir", folder / "run", *PLAIN,
        "--set", "window.segment_frame=0.5", "--max_steps", "3",
    ]  # fmt: skip
    assert finetune(load_script("finetune_segmentation.py"), *command) == 0
    return folder / "run"


def test_the_script_trains_and_its_checkpoint_is_evaluated(trained, shards):
    assert len(losses(trained)) == 3
    assert json.loads((trained / "test_results.json").read_text())["eval_scored_segments"] == 8
    model, processor = load_checkpoint(str(trained))
    assert isinstance(model, LavishForSegmentation)
    assert task_of(model) is SEGMENTATION
    assert processor.window["segment_frame"] == 0.5
    names = {name for name, each in model.named_parameters() if each.requires_grad}
    assert not [name for name in names if ".backbone." in name]
    for auto_class in (AutoModelForSemanticSegmentation, AutoModelForAudioVisualSegmentation):
        assert type(auto_class.from_pretrained(trained)) is LavishForSegmentation

    split = load_rows("sounding_shapes", "test", source=shards)
    with pytest.raises(ValueError, match=r"pass label_columns= \(--label_columns\) masks"):
        label_rows(split, model.config)
    clips = label_rows(split, model.config, ["masks"])
    given = check_modalities(None, model.config)
    assert given == ("av", "v")
    with pytest.raises(ValueError, match="a model for audio-visual segmentation needs video"):
        check_modalities(["a"], model.config)
    protocol = protocol_for(model.config, "")
    both, video = evaluate_checkpoint("x", model, processor, clips, given=given, protocol=protocol)
    assert both["metrics"]["scored_segments"] == video["metrics"]["scored_segments"] == 8
    assert 0 <= both["metrics"]["miou"] <= 1
    assert (both["clips"], video["clips"]) == (4, 4)


def test_evaluate_and_predict_take_the_checkpoint(trained, shards, rows, tmp_path, capsys):
    evaluate, predict = load_script("evaluate.py"), load_script("predict.py")
    command = [
        "--checkpoint",
        trained,
        "--benchmark",
        "sounding_shapes",
        "--source",
        shards,
        "--label_columns",
        "masks",
    ]
    assert finetune(evaluate, *command, "--output", tmp_path / "report", "--workers", "0", "--device", "cpu") == 0
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["benchmark"]["task"] == "segmentation"
    assert [each["given"] for each in results["evaluations"]] == ["av", "v"]
    assert "mIoU (%)" in (tmp_path / "report" / "table.md").read_text()
    (tmp_path / "clip.mp4").write_bytes(rows[0]["video"]["bytes"])
    (tmp_path / "sound.m4a").write_bytes(render_clip(num_frames=0, seconds=1.0))
    capsys.readouterr()
    clips = [tmp_path / "clip.mp4", tmp_path / "sound.m4a", "--output", tmp_path / "lines.jsonl"]
    assert finetune(predict, "--model", trained, "--device", "cpu", *clips) == 0
    first, second = (json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines())
    assert list(first["predictions"]) == ["part 1", "part 2"]
    assert first["predictions"]["part 1"][0]["label"] in ("sounding object", "nothing")
    assert "has no video, which audio-visual segmentation needs" in second["skipped"]
