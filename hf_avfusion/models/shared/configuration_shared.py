"""Base classes of the configs: the fields that several architectures have, and their checks."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ...media.limits import check_bytes, check_num_labels, check_sizes
from ...media.modalities import CLIP_AXES, MODALITIES
from ...processing.spelling import check_spelling
from .sub_configs import check_foreign_config, check_sub_config_sizes

PROBLEM_TYPES = (
    None,
    "single_label_classification",
    "multi_label_classification",
    "multi_head_classification",
    "regression",
)


class AVFusionConfig(PreTrainedConfig):
    """
    Base of the configs of all architectures.

    A subclass is decorated with `@strict` and names its fields in the class attributes below. Its `validate_architecture` first
    calls that of this class. A config made of others names them in `sub_configs_defaults`, as in transformers.
    """

    _counts: ClassVar[tuple[str, ...]] = ()  # fields that are at least 1, or None
    _bounded: ClassVar[tuple[str, ...]] = ()  # further sizes, given once or as a pair
    _rates: ClassVar[tuple[str, ...]] = ()  # fields in [0, 1]
    _choices: ClassVar[Mapping[str, tuple]] = {}  # field -> allowed values
    _sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # name of a factory -> the fields it sets, smallest first

    def __post_init__(self, **kwargs):
        check_spelling(type(self).__name__, kwargs, (each.name for each in fields(self)))
        try:
            self._set_common_fields(**kwargs)
        except (
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
        ) as error:  # of transformers, for values of another type
            raise ValueError(
                f"{type(self).__name__} cannot be made of these fields: {type(error).__name__}: {error}. The config file may be"
                " corrupt."
            ) from error

    def _set_common_fields(self, **kwargs: Any) -> None:
        check_num_labels(kwargs.get("num_labels"))
        check_num_labels(len(kwargs.get("id2label") or getattr(self, "id2label", None) or ()))
        for name in self.sub_configs:
            if isinstance(values := getattr(self, name), Mapping):  # as read from a file
                check_sub_config_sizes(name, values)
        names, numbers = (kwargs.get(name) or getattr(self, name, None) for name in ("id2label", "label2id"))
        _check_label_maps(names, numbers)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """
        As in transformers, but given fields replace saved ones before the config is built, not after. So all are checked
        together, and fields that follow from others are set again.
        """
        own = {each.name for each in fields(cls)} - {*cls.sub_configs, "dtype"}
        given = {name: kwargs.pop(name) for name in own & kwargs.keys()}
        # The saved `label2id` would name other classes.
        if isinstance(given.get("id2label"), Mapping) and "label2id" not in given:
            given["label2id"] = {name: int(number) for number, name in given["id2label"].items()}
        before = {"drop_remainder": None} if "drop_remainder" in own else {}  # saved without it, see `check_remainders`
        if not kwargs.get("return_unused_kwargs"):  # else the caller uses them
            check_spelling(cls.__name__, kwargs, own | {*cls.sub_configs})
        return super().from_dict({**before, **config_dict, **given}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """As in transformers, but through `from_dict`, which knows configs of earlier versions."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def validate_architecture(self) -> None:
        """Checks the fields that the class attributes name. Raises ValueError naming the field."""
        check_sizes({name: getattr(self, name) for name in (*self._counts, *self._bounded)})
        for name in self.sub_configs:
            config = getattr(self, name)
            if isinstance(config, PreTrainedConfig) and not isinstance(
                config, AVFusionConfig
            ):  # these check themselves
                check_foreign_config(name, config)
        if hasattr(self, "modalities"):
            check_modalities(self.modalities)
        self._check_input_bytes()
        for name, allowed in {**self._choices, "problem_type": PROBLEM_TYPES}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}."
                )
        for name in self._counts:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in self._bounded:
            sizes = getattr(self, name) if isinstance(getattr(self, name), (list, tuple)) else [getattr(self, name)]
            if any(size is not None and size < 1 for size in sizes):
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in self._rates:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`{each.name}` must be a finite number, got {value}.")
            if each.name.endswith(("_eps", "initializer_range", "_loss_weight")) and value < 0:
                raise ValueError(f"`{each.name}` must be at least 0, got {value}.")
        if not self.id2label:
            raise ValueError("`id2label` is empty: name at least 1 class, or give `num_labels`.")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(
                f"`id2label` must name the classes 0 to {len(self.id2label) - 1} without gaps, since its length is the number of "
                f"logits, got the keys {sorted(self.id2label)[:20]}."
            )

    def _check_input_bytes(self) -> None:
        """Raises ValueError if the float32 inputs of one clip are too large, for configs with the usual names of sizes."""
        inputs = {
            "video": ("num_frames", "num_channels", "image_size"),
            "audio": ("spectrogram_length", "num_mel_bins", "num_audio_channels"),
        }
        for modality, names in inputs.items():
            sizes = [getattr(self, name, None) for name in names]
            if modality in getattr(self, "modalities", inputs) and None not in sizes:
                sides = as_pair("image_size", sizes.pop()) if modality == "video" else ()
                check_bytes(4 * math.prod([*sizes, *sides]), ", ".join(f"`{name}`" for name in names))

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of a frame, pixels."""
        return as_pair("image_size", self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Height and width of a patch, pixels (spectrogram: frames and mel bands)."""
        return as_pair("patch_size", self.patch_size)

    @property
    def report_settings(self) -> dict[str, Any]:
        """Plain values that distinguish models of this architecture in reports, beside those that all have."""
        return {}

    @property
    def input_axes(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes of each input, after the batch axis."""
        return CLIP_AXES

    @classmethod
    def sizes(cls) -> tuple[str, ...]:
        """Names of the factories, smallest first."""
        return tuple(cls._sizes)

    @classmethod
    def front_end(cls, size: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """
        What a new model of this size and these fields demands of its inputs, such as the sizes of a backbone: `image_size`
        (height, width), `num_frames` of a window, `num_segments`, `spectrogram_length`, `num_mel_bins`, `audio_preset`, the
        name of the front end, and `processor`, further arguments of the processor. Empty if the processor decides all of it.
        """
        return {}

    @classmethod
    def _of_size(cls, size: str, overrides: Mapping[str, Any]) -> Any:
        """The config of a factory. A dict for a sub-config changes only the fields that it names."""
        return cls(**cls._fields_of_size(size, overrides))

    @classmethod
    def _fields_of_size(cls, size: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `_of_size`."""
        fields = dict(cls._sizes[size])
        for name, value in overrides.items():
            before = fields.get(name)
            partial = name in cls.sub_configs and isinstance(value, Mapping) and isinstance(before, Mapping)
            # The fields of a backbone of another type would not fit.
            if partial and value.get("model_type") in (None, before.get("model_type")):
                value = {**before, **value}
            fields[name] = value
        return fields


class ClassifierConfig(AVFusionConfig):
    """The fields of a classification head, and their checks. `class_splits` sets the number of labels and the problem type."""

    classifier_bias_init: float | int = 0.0
    label_smoothing: float | int = 0.0
    class_splits: dict[str, int] | list[list[str | int]] | None = None  # pairs in saved files, see to_dict

    def __post_init__(self, **kwargs):
        if isinstance(self.class_splits, list):
            names = [name for name, _ in self.class_splits]
            if len(set(names)) < len(names):
                raise ValueError(f"`class_splits` names a head twice, got {self.class_splits}.")
            self.class_splits = dict(self.class_splits)
        check_num_labels(kwargs.get("num_labels"), self.class_splits)
        if self.class_splits:
            if kwargs.get("num_labels") is None and kwargs.get("id2label") is None and self.id2label is None:
                kwargs["num_labels"] = sum(self.class_splits.values())
            if self.problem_type is None:
                self.problem_type = "multi_head_classification"
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class. If other labels are given, the saved label maps and problem type are dropped."""
        saved, splits = dict(config_dict), kwargs.get("class_splits")
        count = kwargs.get("num_labels") or (sum(dict(splits).values()) if splits else None)
        if count is not None and count != len(saved.get("id2label") or ()):
            for name in ("id2label", "label2id", "num_labels"):
                saved.pop(name, None)
        if "class_splits" in kwargs and saved.get("problem_type") == "multi_head_classification":
            del saved["problem_type"]
        return super().from_dict(saved, **kwargs)

    def validate_architecture(self) -> None:
        """Checks that `class_splits`, `problem_type` and the number of labels agree. Raises ValueError naming the fields."""
        super().validate_architecture()
        splits = self.class_splits
        if (splits is not None) != (self.problem_type == "multi_head_classification"):
            raise ValueError(
                '`class_splits` and `problem_type="multi_head_classification"` must be set together, got '
                f"class_splits={splits}, problem_type={self.problem_type!r}."
            )
        if splits is not None and min(splits.values(), default=0) < 1:
            raise ValueError(f"`class_splits` must give each head at least 1 class, got {splits}.")
        if splits is not None and sum(splits.values()) != self.num_labels:
            raise ValueError(
                f"`class_splits` {splits} add up to {sum(splits.values())} classes, but "
                f"`num_labels` (the length of `id2label`) is {self.num_labels}. Give `class_splits` that add up to it, or "
                "`class_splits=None` for a single head."
            )

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with `class_splits` as pairs: JSON would sort the keys of a map, which give the order of heads."""
        output = super().to_dict()
        if output.get("class_splits"):
            output["class_splits"] = [[name, size] for name, size in self.class_splits.items()]
        return output


def as_pair(name: str, value: Any) -> tuple[int, int]:
    """(height, width) of a size given once or as a pair. Raises ValueError naming the field."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"`{name}` must be a positive integer or a (height, width) pair, got {value}.")
    return pair


def check_remainders(config: PreTrainedConfig, sizes: Sequence[tuple[str, int, int]]) -> None:
    """
    Checks that inputs are cut into whole patches, unless `config.drop_remainder`.

    Args:
        config: `drop_remainder` None means that the config was saved before this field existed. It then becomes True, with a
            warning, if there is a remainder, and else False.
        sizes: Field, its size along one axis, and the size of a patch along it.

    Raises:
        ValueError: If a size leaves a remainder; the message names the nearest sizes that fit.
    """
    cut = [(name, size, step) for name, size, step in sizes if size % step]
    if config.drop_remainder is None:
        config.drop_remainder = bool(cut)
        if cut:
            warnings.warn(
                "This config was saved before `drop_remainder` existed, so it is loaded with `drop_remainder=True`: the model does "
                f"not use the last {', '.join(f'{size % step} of `{name}` {size}' for name, size, step in cut)}.",
                stacklevel=2,
            )
    elif cut and not config.drop_remainder:
        raise ValueError(
            f"{_not_multiples(cut)} Change the size, or set `drop_remainder=True` to leave the rest unused, as the originals do."
        )


def check_multiples(sizes: Sequence[tuple[str, int, int]]) -> None:
    """Raises ValueError if one of the sizes (field, size along one axis, size of a patch along it) leaves a remainder."""
    if cut := [(name, size, step) for name, size, step in sizes if size % step]:
        raise ValueError(f"{_not_multiples(cut)} Change the size.")


def check_spectrogram(config: PreTrainedConfig) -> None:
    """Raises ValueError if a model with sound has a spectrogram that is smaller than one patch."""
    height, width = config.patch_hw
    if "audio" in config.modalities and (config.spectrogram_length < height or config.num_mel_bins < width):
        raise ValueError(
            f"A spectrogram of `spectrogram_length` x `num_mel_bins` = {config.spectrogram_length} x {config.num_mel_bins} is "
            f"smaller than one patch of `patch_size` {config.patch_hw}. Increase it, or reduce `patch_size`."
        )


def _not_multiples(cut: Sequence[tuple[str, int, int]]) -> str:
    """A sentence for each size, with the nearest sizes that fit."""
    fits = [
        f"`{name}` {size} is not a multiple of {step}, the size of a patch; the nearest that fit are "
        f"{' and '.join(str(each) for each in (size - size % step, size - size % step + step) if each)}."
        for name, size, step in cut
    ]
    return " ".join(dict.fromkeys(fits))


def check_modalities(modalities: Any) -> None:
    """Raises ValueError unless `modalities` names one or both modalities, each once."""
    given = tuple(modalities)
    if not given or len(set(given)) != len(given) or not set(given) <= set(MODALITIES):
        raise ValueError(f"`modalities` must name one or both of {MODALITIES}, each once, got {given}.")


def check_heads(config: PreTrainedConfig, prefix: str = "") -> None:
    """Raises ValueError if the hidden size is not a multiple of the heads, or odd with sinusoidal positions."""
    width, heads = getattr(config, f"{prefix}hidden_size"), getattr(config, f"{prefix}num_attention_heads")
    if width % heads:
        raise ValueError(
            f"`{prefix}hidden_size` ({width}) must be a multiple of `{prefix}num_attention_heads` ({heads})."
        )
    if width % 2 and getattr(config, f"{prefix}position_embeddings", None) == "sinusoidal":
        raise ValueError(f"Sinusoidal positions need an even `{prefix}hidden_size`, got {width}.")


def _check_label_maps(id2label: Any, label2id: Any) -> None:
    """Raises ValueError if both maps are given and a class has another number in each. Names that occur twice are not checked."""
    if not id2label or not label2id or len(set(id2label.values())) < len(id2label):
        return
    expected = {name: int(number) for number, name in id2label.items()}
    if wrong := {name: number for name, number in label2id.items() if expected.get(name) != number}:
        raise ValueError(
            f"`label2id` {dict(list(wrong.items())[:5])} contradicts `id2label`: give `id2label` alone, or both alike."
        )


__all__ = [
    "CLIP_AXES",
    "AVFusionConfig",
    "ClassifierConfig",
    "as_pair",
    "check_heads",
    "check_modalities",
    "check_multiples",
    "check_remainders",
    "check_spectrogram",
]
