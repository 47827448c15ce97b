"""Config fields shared by several architectures: sizes given once or as a pair, and `class_splits`."""

from typing import Any

from transformers import PreTrainedConfig

from ...media.limits import check_num_labels

# Axes of one clip in the inputs of a model, after the batch axis. A config states its own as `input_axes`. Views (evaluation
# windows and crops of one clip) are another axis, right after the batch axis, and the model itself never sees them.
CLIP_AXES = {"pixel_values": ("frames", "channels", "height", "width"), "input_features": ("time", "mel")}


def as_pair(name: str, value: Any) -> tuple[int, int]:
    """(height, width) of a size given once or as a pair. Raises ValueError naming the field."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"`{name}` must be a positive integer or a (height, width) pair, got {value}.")
    return pair


def apply_class_splits(config: PreTrainedConfig, kwargs: dict[str, Any]) -> None:
    """
    Set the fields that follow from `class_splits`. Call it before transformers creates the label names.

    Sets the number of labels in `kwargs` unless given, and the problem type on `config`. A list of pairs, as in saved files,
    becomes a dict. Raises ValueError for more labels than supported.
    """
    if isinstance(config.class_splits, list):
        config.class_splits = dict(config.class_splits)
    check_num_labels(kwargs.get("num_labels"), config.class_splits)
    if config.class_splits:
        if kwargs.get("num_labels") is None and kwargs.get("id2label") is None and config.id2label is None:
            kwargs["num_labels"] = sum(config.class_splits.values())
        if config.problem_type is None:
            config.problem_type = "multi_head_classification"


def check_class_splits(config: PreTrainedConfig) -> None:
    """Raises ValueError if `class_splits`, `problem_type` and the number of labels contradict each other."""
    splits = config.class_splits
    if (splits is not None) != (config.problem_type == "multi_head_classification"):
        raise ValueError(
            '`class_splits` and `problem_type="multi_head_classification"` must be set together, got '
            f"class_splits={splits}, problem_type={config.problem_type!r}."
        )
    if splits is not None and sum(splits.values()) != config.num_labels:
        raise ValueError(
            f"`class_splits` {splits} add up to {sum(splits.values())} classes, but "
            f"`num_labels` (the length of `id2label`) is {config.num_labels}."
        )


__all__ = ["CLIP_AXES", "apply_class_splits", "as_pair", "check_class_splits"]
