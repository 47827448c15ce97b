"""Checkpoints that hold only an adapter of peft and what was trained with it: finds their base model, and loads both together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    cached_file,
    find_adapter_config_file,
)

from ..files import read_json
from ..models.shared.loaded_weights import load_whole

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

BASE = "base_model"  # the folder of a run's base model, inside the folder of the run


def adapter_config(name: str | os.PathLike) -> dict[str, Any] | None:
    """The adapter's config of a checkpoint folder or Hub repository that holds an adapter alone; None for a whole model."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        is_whole = cached_file(str(name), CONFIG_NAME, **quiet) is not None
        found = None if is_whole else find_adapter_config_file(str(name))
    except OSError:  # no such repository: loading it fails with the reason
        return None
    if found is None:
        return None
    content = read_json(found)
    if not isinstance(content, dict):
        raise ValueError(f"{found} is not the config of an adapter: it holds no object")
    return content


def base_of(name: str | os.PathLike) -> str:
    """The checkpoint that holds the base model of an adapter: a folder or Hub id.

    A run stores its base model in `OUTPUT_DIR/base_model`, and its adapters name that folder by its absolute path. If the run was
    moved, the folder is found beside the adapter, in `ADAPTER/base_model` or `ADAPTER/../base_model`.

    Raises:
        ValueError: there is no such folder.
    """
    named = (adapter_config(name) or {}).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ValueError(
            f"{name} does not name its base model: set base_model_name_or_path in its {ADAPTER_CONFIG_NAME}"
        )
    if Path(named).name == BASE:
        for folder in (Path(name), Path(name).absolute().parent):
            if (folder / BASE / "config.json").is_file():
                return str(folder / BASE)
    if Path(named).is_absolute() and not Path(named).is_dir():
        raise ValueError(
            f"{name} is an adapter of {named}, which does not exist: put the folder back, or beside the adapter as "
            f"{Path(name) / BASE}"
        )
    return str(named)


def config_of(name: str | os.PathLike) -> PreTrainedConfig:
    """The config of a checkpoint's model; of an adapter, that of its base model."""
    return AutoConfig.from_pretrained(name if adapter_config(name) is None else base_of(name))


def load_any(model_class: Any, name: str | os.PathLike) -> PreTrainedModel:
    """The model of a checkpoint for use, not for training; of an adapter, its base model with the adapter in it.

    Raises:
        ValueError: as `load_adapter` and `load_whole`.
    """
    if adapter_config(name) is None:
        return load_whole(model_class, name)
    return load_adapter(name, load_whole(model_class, base_of(name))).get_base_model()


def base_class(base: str) -> Any:
    """The class of this package that a base model was saved from.

    Raises:
        ValueError: it is of another package.
    """
    import hf_avfusion

    kind = (AutoConfig.from_pretrained(base).architectures or [None])[0]
    if kind not in hf_avfusion.__all__:
        raise ValueError(f"the base model {base} is a {kind}, not a model of hf_avfusion")
    return getattr(hf_avfusion, kind)


def load_adapter(
    name: str | os.PathLike,
    base: PreTrainedModel | None = None,
    *,
    trainable: bool = False,
    new_heads: Sequence[str] = (),
) -> PeftModel:
    """The adapter of a folder or Hub repository on its base model.

    Args:
        base: the base model; by default it is loaded from where the adapter says (`base_of`).
        trainable: whether it is trained further.
        new_heads: modules of the base model that keep their weights if the checkpoint has others for them in another shape.

    Raises:
        ValueError: the base model is not there, or the checkpoint lacks weights of the adapter. ImportError: peft is missing.
    """
    from peft import PeftModel

    if base is None:
        source = base_of(name)
        base = load_whole(base_class(source), source)
    if new_heads:
        model = _with_own_heads(name, base, trainable, new_heads)
    else:
        model = PeftModel.from_pretrained(base, str(name), is_trainable=trainable)
    check_adapter_weights(model, name, new_heads)
    return model


def _with_own_heads(
    name: str | os.PathLike, base: PreTrainedModel, trainable: bool, new_heads: Sequence[str]
) -> PeftModel:
    """The adapter on its base model, whose heads replace those of the checkpoint where the shapes differ."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(name))
    config.inference_mode = not trainable
    model = get_peft_model(base, config)
    heads = tuple(f"base_model.model.{head}." for head in new_heads)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = load_file(cached_file(str(name), ADAPTER_SAFE_WEIGHTS_NAME))
    for key, weight in own.items():
        if key.startswith(heads) and key in state and state[key].shape != weight.shape:
            state[key] = weight
    set_peft_model_state_dict(model, state)
    return model


def check_adapter_weights(model: PeftModel, name: str | os.PathLike, new_heads: Sequence[str] = ()) -> None:
    """Checks by names and shapes that a checkpoint holds the weights of a model's adapter. peft would leave others as they are.

    Args:
        new_heads: as for `load_adapter`.

    Raises:
        ValueError: it does not; the message names a weight.
    """
    from peft import get_peft_model_state_dict

    with safe_open(cached_file(str(name), ADAPTER_SAFE_WEIGHTS_NAME), framework="pt") as opened:
        theirs = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    ours = {key: tuple(weight.shape) for key, weight in state.items()}
    heads = tuple(f"base_model.model.{head}." for head in new_heads)
    wrong = sorted(
        key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key) and not key.startswith(heads)
    )
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{name} does not hold the weights of this adapter: {len(wrong)} differ, such as {key} (checkpoint: "
            f"{theirs.get(key, 'missing')}, model: {ours.get(key, 'missing')}). Use the adapter and the base model that it was "
            "saved with."
        )
