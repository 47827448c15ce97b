"""Limits on config sizes, far above any real model or clip and far below what exhausts a machine.

Config files of downloaded checkpoints are untrusted input. A config.json alone makes transformers build every layer, every
position and one label name per class before a single weight is read. So sizes are checked first, when the config is created.
"""

import os
from collections.abc import Mapping
from typing import Any

MAX_SIZE = 2**20  # of any width, length or count; an hour of spectrogram has 360,000 rows
MAX_LAYERS = 1024
MAX_LABELS = 2**16  # ImageNet-21k has 21,841
MAX_BYTES = 2**33  # of one clip's tensors and intermediates, or of a model; raised by HF_AVFUSION_MAX_BYTES
MAX_SECONDS = 86_400
MAX_PICTURE_PIXELS = 2**25  # of a video; 8K (7680 x 4320) has 33,177,600


def max_bytes() -> int:
    """MAX_BYTES, or the number in the environment variable HF_AVFUSION_MAX_BYTES. Raises ValueError if that is not a number."""
    given = os.environ.get("HF_AVFUSION_MAX_BYTES")
    if given is None:
        return MAX_BYTES
    if not given.isdecimal():
        raise ValueError(f"HF_AVFUSION_MAX_BYTES={given!r} must be a whole number of bytes, such as {2 * MAX_BYTES}")
    return int(given)


def check_bytes(count: int, what: str, hint: str = "The config file may be corrupt.") -> None:
    """Raises ValueError if something takes more than `max_bytes` of memory. Call it before the memory is taken.

    Args:
        count: bytes of what is held at once: results and intermediates.
        what: the fields or parts that take them, in the plural.
        hint: a sentence on what may be wrong.
    """
    if count > max_bytes():
        raise ValueError(
            f"{what} together give {count:,} bytes, which exceeds the supported maximum of {max_bytes():,}. {hint} If the sizes "
            "are right, set the environment variable HF_AVFUSION_MAX_BYTES to a larger number."
        )


def check_num_labels(num_labels: Any, class_splits: Mapping[str, Any] | None = None) -> None:
    """Raises ValueError for more than MAX_LABELS labels. Call it before transformers creates a name for each label."""
    counts = [num_labels, *(class_splits or {}).values()]
    if any(isinstance(count, int) and count > MAX_LABELS for count in counts):
        raise ValueError(
            f"num_labels={num_labels}, class_splits={class_splits} exceed the supported maximum of {MAX_LABELS:,} labels. The "
            "config file may be corrupt."
        )


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """
    Raises ValueError for sizes (an integer, or several) above MAX_SIZE. For names that end in "layers" or "depths", the bound is
    MAX_LAYERS, for the sum of several.
    """
    for name, value in sizes.items():
        of_layers = name.endswith(("layers", "depths"))
        bound = MAX_LAYERS if of_layers else MAX_SIZE
        values = value if isinstance(value, (list, tuple)) else [value]
        integers = [each for each in values if isinstance(each, int)]
        if max(integers, default=0) > bound or (of_layers and max(sum(integers), len(values)) > bound):
            raise ValueError(
                f"`{name}`={value} exceeds the supported maximum of {bound:,}. The config file may be corrupt."
            )


def check_num_tokens(modality: str, count: int) -> None:
    """Raises ValueError if the sizes of a config give more than MAX_SIZE tokens of a modality in one clip."""
    if count > MAX_SIZE:
        raise ValueError(
            f"The sizes of the input and of its patches together give {count:,} {modality} tokens, which exceeds the supported "
            f"maximum of {MAX_SIZE:,}. The config file may be corrupt."
        )


__all__ = [
    "MAX_PICTURE_PIXELS",
    "MAX_SECONDS",
    "check_bytes",
    "check_num_labels",
    "check_num_tokens",
    "check_sizes",
    "max_bytes",
]
