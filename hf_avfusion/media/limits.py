"""Limits on config sizes, far above any real model or clip and far below what exhausts a machine.

Config files of downloaded checkpoints are untrusted input. A config.json alone makes transformers build every layer, every
position and one label name per class before a single weight is read. So sizes are checked first, when the config is created.
"""

from collections.abc import Mapping
from typing import Any

MAX_SIZE = 2**20  # of any width, length or count; an hour of spectrogram has 360,000 rows
MAX_LAYERS = 1024
MAX_PARAMETERS = 2**36  # 69 billion; MBT-Large has 0.6 billion
MAX_INPUT_VALUES = 2**32  # of one clip, 16 GiB as float32; 32 frames of 224 x 224 are 5 million
MAX_SECONDS = 86_400
MAX_PICTURE_PIXELS = 2**25  # of a video; 8K (7680 x 4320) has 33,177,600


def check_num_labels(num_labels: Any, class_splits: Mapping[str, Any] | None = None) -> None:
    """Raises ValueError for more than MAX_SIZE labels. Call it before transformers creates a name for each label."""
    counts = [num_labels, *(class_splits or {}).values()]
    if any(isinstance(count, int) and count > MAX_SIZE for count in counts):
        raise ValueError(
            f"num_labels={num_labels}, class_splits={class_splits} exceed the supported maximum of {MAX_SIZE:,} labels. The "
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


def check_num_parameters(count: int, name: str) -> None:
    """Raises ValueError if the sizes in a config of this class name together need more than MAX_PARAMETERS parameters."""
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"The sizes in {name} together give {count:,} parameters, which exceeds the supported maximum of "
            f"{MAX_PARAMETERS:,}. The config file may be corrupt."
        )


def check_input_values(count: int, fields: str) -> None:
    """Raises ValueError if one prepared clip would hold more than MAX_INPUT_VALUES values."""
    if count > MAX_INPUT_VALUES:
        raise ValueError(
            f"{fields} together give {count:,} values per clip, which exceeds the supported maximum of {MAX_INPUT_VALUES:,}. "
            "The config file may be corrupt."
        )


__all__ = [
    "MAX_PICTURE_PIXELS",
    "MAX_SECONDS",
    "check_input_values",
    "check_num_labels",
    "check_num_parameters",
    "check_num_tokens",
    "check_sizes",
]
