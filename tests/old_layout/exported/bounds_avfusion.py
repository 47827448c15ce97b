"""Bounds on the sizes that a configuration may ask for: far beyond any model or clip, far below what takes a machine down.

A checkpoint from elsewhere is data of a stranger. Its config.json alone makes transformers build every layer, every position
and one label name per class, before a single weight is read; so sizes are checked first, when the configuration is made.
"""

from collections.abc import Mapping
from typing import Any

LARGEST_SIZE = 2**20  # of any width, length or number: an hour of spectrogram has 360,000 rows
MOST_LAYERS = 1024
MOST_PARAMETERS = 2**36  # 69 billion; MBT-Large has 0.6
MOST_INPUT_VALUES = 2**32  # of one clip, 16 GiB as float32; 32 frames of 224 x 224 are 5 million
LONGEST_SECONDS = 86_400


def check_num_labels(num_labels: Any, class_splits: Mapping[str, Any] | None = None) -> None:
    """Before transformers makes a name for each of them. Raises ValueError for more than LARGEST_SIZE labels."""
    counts = [num_labels, *(class_splits or {}).values()]
    if any(isinstance(count, int) and count > LARGEST_SIZE for count in counts):
        raise ValueError(
            f"num_labels={num_labels}, class_splits={class_splits}: more than {LARGEST_SIZE:,} labels are not supported; is "
            "this configuration what it says it is?"
        )


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Raises ValueError for a size (an integer, or several) that no model has; layers are fewer than other sizes."""
    for name, value in sizes.items():
        bound = MOST_LAYERS if name.endswith("layers") else LARGEST_SIZE
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(each, int) and each > bound for each in values):
            raise ValueError(f"`{name}`={value} is beyond {bound:,}: is this configuration what it says it is?")


def check_num_parameters(count: int, fields: str) -> None:
    """Raises ValueError if the sizes named in `fields`, though each may do, together ask for more than MOST_PARAMETERS."""
    if count > MOST_PARAMETERS:
        raise ValueError(
            f"{fields} together ask for {count:,} parameters, beyond {MOST_PARAMETERS:,}: is this configuration what it says "
            "it is?"
        )


def check_input_values(count: int, fields: str) -> None:
    """Raises ValueError if one prepared clip would hold more than MOST_INPUT_VALUES numbers."""
    if count > MOST_INPUT_VALUES:
        raise ValueError(
            f"{fields} together make {count:,} values of one clip, beyond {MOST_INPUT_VALUES:,}: is this configuration what "
            "it says it is?"
        )


__all__ = ["LONGEST_SECONDS", "check_input_values", "check_num_labels", "check_num_parameters", "check_sizes"]
