"""Moves LAVISH adapters between peft and the model itself."""

import copy
from typing import Any

from peft import PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from ..models.lavish.layers_lavish import CrossModalSlot
from .config import LavishConfig
from .layer import LavishLayer


def build_in(model: PeftModel | PreTrainedModel, adapter_name: str | None = None) -> PreTrainedModel:
    """
    A plain model with the adapters as parts of its own, equal to the bit. It saves, exports and loads without peft.

    Args:
        model: A model with LAVISH adapters, of `get_peft_model`, `PeftModel.from_pretrained`, `add_adapter` or `load_adapter`.
        adapter_name: Which adapter; by default the active one.

    Returns:
        A copy, whose `config.adapter` holds the options of the adapters. Modules that were trained with the adapter
        (`modules_to_save`) are in their places.

    Raises:
        ValueError: The model has no such adapter, or several are active.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = [module for module in base.modules() if isinstance(module, LavishLayer)]
    if not layers:
        raise ValueError(f"{type(base).__name__} has no LAVISH adapters of peft. There is nothing to build in.")
    known = sorted({name for layer in layers for name in (*layer.lavish_audio, *layer.lavish_video)})
    if adapter_name is None:
        active = layers[0].active_adapters
        if len(active) != 1:
            raise ValueError(f"Several adapters are active, {active}. Name one of them as `adapter_name`.")
        (adapter_name,) = active
    if adapter_name not in known:
        raise ValueError(f"The model has no adapter {adapter_name!r}. Its adapters are {', '.join(known)}.")
    options = model.peft_config[adapter_name]
    built = copy.deepcopy(base)
    slots = []
    for name, module in list(built.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, LavishLayer):
            slot = module.get_base_layer()
            slot.audio, slot.video = module.pair(adapter_name)
            if slot.audio is not None or slot.video is not None:
                slots.append(name.removeprefix(f"{built.base_model_prefix}."))
            setattr(built.get_submodule(parent), child, slot)
        elif isinstance(module, ModulesToSaveWrapper):
            saved = dict(module.modules_to_save.items())
            setattr(built.get_submodule(parent), child, saved.get(adapter_name, module.original_module))
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in vars(built):
            delattr(built, name)
    built.config.adapter = options.to_mapping()
    if set(slots) != set(built.config.slot_names):
        built.config.adapter["slots"] = slots
    built.config.validate()
    return built


def take_out(
    model: PreTrainedModel, adapter_name: str = "default", modules_to_save: list[str] | None = None, **options: Any
) -> PeftModel:
    """
    The way back from [`build_in`]: a peft model around a copy without built-in adapters, equal to the bit.

    Args:
        model: A model with built-in adapters.
        adapter_name: The name that the adapter gets.
        modules_to_save: Modules that are trained and saved with the adapter, such as `["pre_classifier", "classifier"]`.
        **options: Further fields of [`LavishConfig`], such as `inference_mode`.

    Raises:
        ValueError: The model has no built-in adapters.
    """
    adapters = model.config.adapter_options
    if adapters is None:
        raise ValueError(f"{type(model).__name__} has no built-in adapters (config.adapter is None).")
    base, pairs = copy.deepcopy(model), {}
    for name, module in base.named_modules():
        if isinstance(module, CrossModalSlot) and (module.audio is not None or module.video is not None):
            pairs[name] = module.audio, module.video
            module.audio = module.video = None
    base.config.adapter = None
    config = LavishConfig(
        target_modules=list(pairs), modules_to_save=modules_to_save, **adapters.to_mapping(), **options
    )
    wrapped = get_peft_model(base, config, adapter_name=adapter_name)
    for name, pair in pairs.items():
        layer = wrapped.get_base_model().get_submodule(name)
        for own, adapter in zip(layer.pair(adapter_name), pair):
            if adapter is not None:
                own.load_state_dict(adapter.state_dict(), assign=True)
                _require_grads(own, not config.inference_mode)
    return wrapped


def _require_grads(module: nn.Module, wanted: bool) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(wanted)


__all__ = ["build_in", "take_out"]
