"""AVSBench's mIoU and F-score against hand-worked frames, a loop over thresholds, and a recorded case."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_avfusion.metrics.segmentation import f_score_curves, frame_iou, segmentation_scores, video_f_score


def test_iou_of_frames_by_hand():
    # Three frames of 2 x 2 pixels; the prediction is positive in the first row.
    logits = np.tile(np.array([[3.0, 2.0], [-1.0, -4.0]]), (3, 1, 1))
    masks = np.array([[[1, 0], [1, 0]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]])
    # First frame: one of three pixels in common; second: all; third (empty mask): two of four pixels predicted empty.
    assert frame_iou(logits, masks) == pytest.approx([1 / 3, 1.0, 0.5], abs=1e-6)
    # A logit of 0 has the sigmoid 0.5, which is not above the threshold.
    assert frame_iou(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)))[0] == pytest.approx(1.0)


def test_f_score_by_hand():
    # Sigmoids 0.9, 0.6, 0.2 and 0.1; the object is the first and the third pixel.
    sigmoids = np.array([[[0.9, 0.6], [0.2, 0.1]]])
    logits = np.log(sigmoids / (1 - sigmoids))
    masks = np.array([[[1, 0], [1, 0]]])
    curve = f_score_curves(logits, masks)[0]

    def f(precision, recall):
        return 1.3 * precision * recall / (0.3 * precision + recall)

    thresholds = np.linspace(0, 1, 255)
    for threshold, precision, recall in ((0.0, 0.5, 1), (0.15, 2 / 3, 1), (0.5, 0.5, 0.5), (0.8, 1, 0.5)):
        assert curve[np.searchsorted(thresholds, threshold)] == pytest.approx(f(precision, recall))
    assert ((curve > 0) == (thresholds <= 0.9)).all()  # above 0.9, nothing is predicted
    assert curve[thresholds <= 0.1] == pytest.approx(f(0.5, 1))  # up to 0.1, everything is predicted
    assert curve[thresholds > 0.1][0] == pytest.approx(f(2 / 3, 1))
    assert video_f_score(logits, masks) == pytest.approx(
        f(1, 0.5)
    )  # higher than f(2/3, 1), since precision has more weight
    assert f(1, 0.5) > f(2 / 3, 1)


def independent_scores(logits, masks):
    """The F-score of one video in torch, one threshold at a time."""
    probabilities, masks = torch.sigmoid(torch.as_tensor(logits)).float(), torch.as_tensor(masks).float()
    overlaps, curves = [], []
    for probability, mask in zip(probabilities, masks):
        positive = probability > 0.5
        if mask.sum() == 0:
            overlaps.append((~positive).float().mean().item())
            continue
        both = ((positive == 1) & (mask == 1)).sum().item()
        overlaps.append(both / (positive.sum().item() + mask.sum().item() - both))
        curve = []
        for threshold in torch.linspace(0, 1 - 1e-10, 255):
            chosen = (probability >= threshold).float()
            precision = ((chosen * mask).sum() / (chosen.sum() + 1e-20)).item()
            recall = ((chosen * mask).sum() / mask.sum()).item()
            total = 0.3 * precision + recall
            curve.append(1.3 * precision * recall / total if total else 0.0)
        curves.append(curve)
    return np.mean(overlaps), np.mean(curves, axis=0).max() if curves else math.nan


@pytest.fixture
def videos():
    rng = np.random.default_rng(0)
    masks = rng.random((4, 5, 12, 9)) < 0.4
    logits = rng.normal(size=masks.shape).astype(np.float32) * 4 + np.where(masks, 1.5, -1.5).astype(np.float32)
    masks[0, 2] = False  # one empty frame
    masks[2] = False  # a video without an object
    logits[1, 0] = -200.0  # nothing predicted; exp overflows
    logits[3, 1] = 200.0
    return logits, masks


def test_videos_equal_a_loop_over_thresholds(videos):
    logits, masks = videos
    scores = segmentation_scores(logits, masks)
    expected = [independent_scores(*video) for video in zip(logits, masks)]
    assert scores.video_iou == pytest.approx([iou for iou, _ in expected], abs=1e-6)
    assert scores.video_f_score == pytest.approx([f for _, f in expected], abs=1e-6, nan_ok=True)
    assert scores.miou == pytest.approx(scores.video_iou.mean())
    assert (scores.empty_frames, scores.videos_without_object) == (6, [2])


def test_videos_without_an_object(videos):
    scores = segmentation_scores(*videos)
    others = np.delete(scores.video_f_score, 2)
    assert scores.f_score == pytest.approx(others.sum() / 4)  # as published, they count as 0
    assert segmentation_scores(*videos, empty_videos="skip").f_score == pytest.approx(others.mean())
    nothing = segmentation_scores(np.zeros((1, 2, 3, 3)), np.zeros((1, 2, 3, 3)), empty_videos="skip")
    assert math.isnan(nothing.f_score)


def test_videos_may_be_generated_and_differ_in_size(videos):
    logits, masks = videos
    whole = segmentation_scores(logits, masks)
    lazy = segmentation_scores((torch.from_numpy(each) for each in logits), (torch.from_numpy(each) for each in masks))
    assert (lazy.miou, lazy.f_score) == (whole.miou, whole.f_score)
    mixed = segmentation_scores([logits[0], logits[1, :2, :8]], [masks[0], masks[1, :2, :8]])
    assert mixed.video_iou[0] == whole.video_iou[0]
    assert mixed.miou == pytest.approx(
        np.mean([whole.video_iou[0], frame_iou(logits[1, :2, :8], masks[1, :2, :8]).mean()])
    )


def test_recorded_video(shared):
    """Compares with the original LAVISH code, which evaluates like AVSBench."""
    tensors = load_file(shared / "goldens" / "lavish" / "avs.safetensors")
    scores = segmentation_scores([tensors["output/pred"][:, 0]], [tensors["input/mask"][:, 0]])
    assert scores.miou == pytest.approx(tensors["output/miou"].item(), abs=1e-6)
    assert scores.f_score == pytest.approx(tensors["output/fscore"].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "masks", "message"),
    [
        (np.zeros((1, 2, 4, 4)), np.zeros((1, 2, 4, 5)), r"Video 0: .*one shape \[frames, H, W\]"),
        (np.zeros((1, 2, 4, 4)), np.full((1, 2, 4, 4), 255), "Video 0: Masks must be 0 or 1"),
        (np.full((1, 2, 4, 4), np.nan), np.zeros((1, 2, 4, 4)), "2 of 2 frames are NaN"),
        (np.zeros((2, 2, 4, 4)), np.zeros((1, 2, 4, 4)), "masks for 1 videos, but logits for more"),
        (np.zeros((1, 2, 4, 4)), np.zeros((2, 2, 4, 4)), "logits for 1 videos, but masks for more"),
        ([], [], "no videos"),
    ],
)
def test_invalid_inputs_raise(logits, masks, message):
    with pytest.raises(ValueError, match=message):
        segmentation_scores(logits, masks)
    with pytest.raises(ValueError, match="empty_videos"):
        segmentation_scores(logits, masks, empty_videos="one")
