"""`evaluate` module: mIoU and F-score of masks by AVSBench's rules."""

from typing import Any

import datasets
import evaluate

from hf_avfusion.metrics.evaluate_modules.info import module_info
from hf_avfusion.metrics.segmentation import segmentation_scores


class Segmentation(evaluate.Metric):
    """`miou`, `f_score`, `empty_frames`, `videos_without_object` (`segmentation.segmentation_scores`).

    The module stores every mask; `segmentation_scores` with generators has only one video in memory at a time.

    Args:
        shape: frames, height and width of a video's masks; None for a varying number of frames.
        empty_videos: see `segmentation_scores`.
        **kwargs: as for any `evaluate.Metric` (cache_dir, num_process, ...).
    """

    def __init__(
        self, *, shape: tuple[int | None, int, int] = (5, 224, 224), empty_videos: str = "zero", **kwargs: Any
    ):
        self.shape = tuple(shape)
        self.empty_videos = empty_videos
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return module_info(
            "mIoU and F-score of masks by AVSBench's rules.",
            "predictions: float [videos, frames, H, W], logits; references: [videos, frames, H, W] of 0 and 1.",
            {
                "predictions": datasets.Array3D(self.shape, "float32"),
                # float: an integer column would silently truncate a soft mask of 0.5 to 0
                "references": datasets.Array3D(self.shape, "float32"),
            },
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        scores = segmentation_scores(predictions, references, empty_videos=self.empty_videos)
        return {
            "miou": scores.miou,
            "f_score": scores.f_score,
            "empty_frames": scores.empty_frames,
            "videos_without_object": len(scores.videos_without_object),
        }
