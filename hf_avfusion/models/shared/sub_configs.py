"""Checks of configs inside of other configs. They may be of architectures of transformers, which check little themselves."""

import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ...media.limits import check_sizes

# Sizes that are at least 1 in every architecture.
_AT_LEAST_ONE = {
    "hidden_size", "hidden_sizes", "intermediate_size", "num_attention_heads", "num_heads", "num_hidden_layers", "depths",
    "num_channels", "num_frames", "tubelet_size", "image_size", "patch_size", "window_size", "embed_dim", "embedding_size",
}  # fmt: skip


def check_sub_config_sizes(path: str, fields: Mapping[str, Any]) -> None:
    """`check_sizes` for every integer of a config that is a field of another, called `path`, before the config is made."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            check_sub_config_sizes(f"{path}.{name}", value)
        else:
            check_sizes({f"{path}.{name}": value})


def check_foreign_config(path: str, config: PreTrainedConfig) -> None:
    """
    Checks the numbers of a config of transformers that is a field of another, called `path`.

    Raises:
        ValueError: For sizes that are too large or below 1, numbers that are not finite, dropout rates outside of [0, 1], and
            negative epsilons; the message names the field.
    """
    fields = config.to_dict()
    check_sub_config_sizes(path, fields)
    for name, value in fields.items():
        for number in _numbers(value):
            if not math.isfinite(number):
                raise ValueError(f"`{path}.{name}` must be a finite number, got {value}.")
            if name in _AT_LEAST_ONE and number < 1:
                raise ValueError(f"`{path}.{name}` must be at least 1, got {value}.")
            if "drop" in name and not 0 <= number <= 1:
                raise ValueError(f"`{path}.{name}` must lie in [0, 1], got {value}.")
            if name.endswith(("_eps", "initializer_range")) and number < 0:
                raise ValueError(f"`{path}.{name}` must be at least 0, got {value}.")


def _numbers(value: Any) -> list[int | float]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [each for each in values if isinstance(each, (int, float)) and not isinstance(each, bool)]


__all__ = ["check_foreign_config", "check_sub_config_sizes"]
