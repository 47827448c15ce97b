"""Audio-visual segmentation: for each segment of a clip, a mask of the pixels of what sounds, such as in AVSBench-S4."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..auto import AUDIO_VISUAL_SEGMENTATION, AutoModelForAudioVisualSegmentation
from ..media.limits import MAX_PICTURE_PIXELS
from ..media.sources import MediaError, check_regular_file, check_row_path, one_line
from ..metrics.segmentation import joined_scores, video_scores
from ..models.lavish.losses_lavish import NO_MASK, mask_loss
from ..processing.answers import mask_shares
from .task import RowLabels, ShownMetric, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedConfig


class MaskLabels(RowLabels):
    """The masks of a clip: uint8 [masks, height, width] of 0 and 1, and 255 in all pixels of a segment without a mask.

    Args:
        columns: the one column with a list of pictures, each {"bytes", "path"} or None for a segment without a mask. A list of one
            picture is the mask of the first segment, as in AVSBench-S4's training split. Otherwise there is one for each segment.
    """

    def __init__(self, columns: Sequence[str] | str = ("masks",)):
        super().__init__(columns)
        if len(self.columns) != 1:
            raise ValueError(f"segmentation has one column of masks, got {self.columns}")

    def __call__(self, row: Mapping[str, Any]) -> torch.Tensor:
        """Reads the masks.

        Raises:
            MediaError: a picture that cannot be read.
            ValueError: no column or no mask, masks of different sizes, or a picture that is no mask.
        """
        column = self.columns[0]
        if column not in row:
            raise ValueError(f"clip {row['clip_id']} has no column {column!r}; its columns are: {', '.join(row)}")
        pictures = row[column]
        if not isinstance(pictures, (list, tuple)) or all(picture is None for picture in pictures):
            raise ValueError(
                f"clip {row['clip_id']}: {column!r} must hold a list of masks, one for each segment of the clip, got "
                f"{pictures!r:.80}"
            )
        names = [f"{row['clip_id']}, {column}[{number}]" for number in range(len(pictures))]
        masks = [None if each is None else read_mask(each, name) for each, name in zip(pictures, names)]
        sizes = {mask.shape for mask in masks if mask is not None}
        if len(sizes) > 1:
            shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
            raise ValueError(f"clip {row['clip_id']}: its masks must have one size, got {shown}")
        absent = np.full(sizes.pop(), NO_MASK, dtype=np.uint8)
        return torch.from_numpy(np.stack([absent if mask is None else mask for mask in masks]))

    def check_window(self, row: Mapping[str, Any], processor: Any, modalities: Sequence[str], seconds: float) -> None:
        segments, masks = processor.window["num_segments"], len(row[self.columns[0]])
        if segments is None:
            raise ValueError(
                f"clip {row['clip_id']} has masks of segments, but the processor does not cut clips into segments: give it "
                f"num_segments={masks}"
            )
        if masks not in (1, segments):
            raise ValueError(
                f"clip {row['clip_id']} has {masks} masks, but the processor cuts clips into num_segments={segments}: give it "
                "the same number, or one mask alone, of the first segment"
            )


def read_mask(picture: Mapping[str, Any], name: str) -> np.ndarray:
    """The mask of a picture, uint8 [height, width] of 0 and 1: black is 0, and the only other value is 1.

    Args:
        picture: {"bytes", "path"} of a row, which is untrusted: a path is that of a local file.
        name: of the picture, for messages.

    Raises:
        MediaError: it cannot be read.
        ValueError: it has transparent pixels, or more than two values.
    """
    from PIL import Image, UnidentifiedImageError

    data, path = picture.get("bytes"), picture.get("path")
    if data is None and path is None:
        raise MediaError(name, "has neither bytes nor a path")
    if data is None:
        check_row_path(path, allow_urls=False)
        check_regular_file(path, name)
        data = Path(path).read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PICTURE_PIXELS:
                raise MediaError(
                    name, f"has {opened.width}x{opened.height} pixels; at most {MAX_PICTURE_PIXELS:,} are read"
                )
            if opened.has_transparency_data and opened.convert("RGBA").getextrema()[3][0] < 255:
                raise ValueError(f"{name}: is a picture with transparent pixels; save the mask as black and white")
            deep = opened.mode.startswith(("I", "F"))  # `convert` clips their values
            values = np.asarray(opened if deep else opened.convert("L"))
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(name, f"cannot be read as a picture: {one_line(error)}") from error
    found = np.unique(values)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        shown = ", ".join(f"{value:g}" for value in found[:4])
        raise ValueError(
            f"{name}: a mask is black (0) and one other value, got {len(found)} values ({shown}{', ...' if len(found) > 4 else ''})"
        )
    return (values != 0).astype(np.uint8)


def mask_fields(features: datasets.Features, columns: Sequence[str], config: Any) -> dict[str, Any]:
    """`num_segments` of the configuration, if it has one.

    Raises:
        ValueError: not one column of lists of pictures.
    """
    import datasets

    lists = [name for name, kind in features.items() if isinstance(kind, datasets.List)]
    pictures = [name for name in lists if isinstance(features[name].feature, datasets.Image)]
    if len(columns) != 1 or columns[0] not in pictures:
        raise ValueError(
            f"no masks in {', '.join(columns)}: the columns that hold lists of pictures are {', '.join(pictures) or 'none'}; pass "
            "label_columns= (--label_columns) one of these"
        )
    segments = getattr(config, "num_segments", None)
    return {} if segments is None else {"num_segments": segments}


def choose_mask_column(
    config: PreTrainedConfig, kinds: Mapping[str, str], features: Mapping[str, Any]
) -> tuple[str, ...]:
    """The benchmark's column of pictures, or `masks`."""
    return tuple(column for column, kind in kinds.items() if kind == "images")[:1] or ("masks",)


def whole_clip_masks(logits: torch.Tensor, labels: torch.Tensor | None, aggregation: str, config: Any) -> torch.Tensor:
    """[clips, 1 view, segments, height, width] -> [clips, segments, height, width]."""
    if logits.dim() != 5 or logits.shape[1] != 1:
        raise ValueError(
            "Expected one view of each whole clip and logits [clips, 1, segments, height, width] in segmentation, got "
            f"{tuple(logits.shape)}."
        )
    return logits[:, 0]


def clip_mask_loss(logits: torch.Tensor, labels: torch.Tensor, config: Any) -> torch.Tensor:
    """The mask loss of each clip, float32 [clips]; 0 for a clip without a mask."""
    kind = getattr(config, "mask_loss", "bce_with_logits")
    return torch.stack([mask_loss(logits[None], labels[None], kind) for logits, labels in zip(logits, labels)])


def clip_scores(logits: torch.Tensor, labels: torch.Tensor, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the metrics need of each clip: float64 [clips, 2], mIoU and F-score of its segments with a mask, NaN without any (the
    F-score: without one that has an object); and long [clips], the number of segments with a mask.
    """
    scores, numbers = [], []
    for clip, masks in zip(logits.float().cpu().numpy(), labels.cpu().numpy()):
        counted = (masks != NO_MASK).any(axis=(1, 2))
        numbers.append(int(counted.sum()))
        scores.append(video_scores(clip[counted], masks[counted]) if counted.any() else (float("nan"),) * 2)
    found = torch.tensor(scores, dtype=torch.float64).reshape(-1, 2)
    return found.to(logits.device), torch.tensor(numbers, device=logits.device)


def mask_metrics(scores: torch.Tensor, numbers: torch.Tensor, config: Any) -> dict[str, float]:
    """`miou` and `f_score` by AVSBench's rules, the clips without a sounding object, and the scored segments.

    Args:
        scores, numbers: see `clip_scores`.

    Raises:
        ValueError: no clip has a mask.
    """
    scored = scores[numbers > 0].double().cpu().numpy()
    if not len(scored):
        raise ValueError("no segment of the evaluated clips has a mask: choose a split with masks")
    joined = joined_scores(scored[:, 0], scored[:, 1])
    return {
        "miou": joined.miou,
        "f_score": joined.f_score,
        "clips_without_object": float(len(joined.videos_without_object)),
        "scored_segments": float(numbers.sum()),
    }


SHOWN = {
    "miou": ShownMetric("mIoU", axis="mean intersection over union", percent=True, hub="mean_iou"),
    "f_score": ShownMetric("F-score", percent=True),
    "clips_without_object": ShownMetric("clips without object", digits=0),
    "scored_segments": ShownMetric("scored segments", digits=0),
}


def describe_masks(config: PreTrainedConfig, source: str | None) -> str:
    height, width = config.mask_hw
    return (
        f"A mask of {height} x {width} pixels for each of {config.num_segments} segments of a clip: the pixels of what sounds, "
        "without a class. A logit above 0 belongs to the mask; `processor.post_process_masks` gives masks at the size of the film."
    )


SEGMENTATION = Task(
    name="segmentation",
    heads=("ForSegmentation", "ForAudioVisualSegmentation"),
    auto_class=AutoModelForAudioVisualSegmentation,
    title="audio-visual segmentation",
    needs="a mask of what sounds for every second",
    benchmark_tasks=("segmentation",),
    config_fields=mask_fields,
    choose_columns=choose_mask_column,
    borrowed_kinds=("images",),
    read_labels=lambda columns, fields: MaskLabels(columns),
    needed_modalities=("video",),
    whole_clip=True,
    join_views=whole_clip_masks,
    loss=clip_mask_loss,
    reduce=clip_scores,
    metrics=mask_metrics,
    metric_names=lambda config: set(SHOWN),
    headline=("miou",),
    show_metric=lambda name: SHOWN.get(name) or ShownMetric(name.replace("_", " ")),
    answer=mask_shares,
    pipeline=AUDIO_VISUAL_SEGMENTATION,
    hub_task=AUDIO_VISUAL_SEGMENTATION.name,
    describe_labels=describe_masks,
    transform="segmentation:MaskTransform",
    collator="segmentation:MaskCollator",
    dataset_categories={"segmentation": "image-segmentation"},
    # LAVISH's published trainer augments nothing. The masks are of frames at AVSBench's place.
    plain_recipe={
        "architecture": "lavish",
        "init_method": "from_backbone",
        "window": {"segment_frame": 15 / 16},
        "frame_augmentation": None,
        "spec_augment": None,
    },
)
