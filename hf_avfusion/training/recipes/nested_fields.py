"""Fields of a configuration that is made of others, under dotted names such as `audio_config.hidden_size`."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig


def flat_fields(values: Mapping[str, Any], sub_configs: Iterable[str]) -> dict[str, Any]:
    """{"audio_config": {"hidden_size": 64}} -> {"audio_config.hidden_size": 64} for the named sub-configurations.

    Raises:
        ValueError: the value of a sub-configuration is not a mapping.
    """
    flat = {}
    for name, value in values.items():
        if name not in sub_configs or value is None:
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{field}": entry for field, entry in value.items()}
        else:
            raise ValueError(
                f'{name}={value!r} must be an object of fields, such as {{"{name}": {{"hidden_size": 192}}}}'
            )
    return flat


def nested_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat_fields`: dotted names become nested dicts, as the constructor of a configuration takes them."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        part, dot, field = name.partition(".")
        if dot:
            nested[part] = {**(nested.get(part) or {}), field: value}
        else:
            nested[name] = value
    return nested


def place_fields(config: PreTrainedConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Renames values to the fields of `config`, and to the dotted names of every sub-configuration that has such a field.

    A value without a field is left out, such as the frame size for an audio architecture.
    """
    placed = {}
    for name, value in values.items():
        if hasattr(config, name):
            placed[name] = value
        parts = [part for part in config.sub_configs if hasattr(getattr(config, part), name)]
        placed |= {f"{part}.{name}": value for part in parts}
    return placed


def field_names(config: PreTrainedConfig) -> set[str]:
    """The names of all fields, those of sub-configurations dotted."""
    names = flat_fields(config.to_dict(), config.sub_configs)
    return {name for name in names if name != "model_type" and not name.endswith("transformers_version")}


def unknown_fields(config: PreTrainedConfig, names: Iterable[str]) -> list[str]:
    """The names that `config` does not have, each with the nearest name that it has."""
    unknown = []
    for name in names:
        part, dot, field = name.rpartition(".")
        if not hasattr(getattr(config, part, None) if dot else config, field):
            near = get_close_matches(name, sorted(field_names(config)), n=1)
            unknown.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return unknown
