"""The tuner of peft's method LAVISH: puts adapters into the slots of a two-stream model."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import register_peft_method
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import initialization as init

from ..media.limits import check_bytes
from ..models.lavish.layers_lavish import CrossModalSlot, make_adapters
from ..models.lavish.options_lavish import AdapterOptions
from .config import DEFAULT_TARGETS, LavishConfig
from .layer import NO_MERGE, LavishLayer

# Tensors of adapters, with the adapter's name: those of slots, and modules that are saved with it.
_ADAPTER_NAME = re.compile(r"\.(?:lavish_audio|lavish_video|modules_to_save)\.([^.]+)\.")


class LavishModel(BaseTuner):
    """
    The model with adapters, as `get_peft_model` makes it. The backbone is not known here: any model with slots will do.

    Raises:
        ValueError: Before anything is changed, for targets that are no slots, slots with built-in adapters, options that do
            not fit the slots' widths, and names of adapters that are names of modules.
    """

    prefix = "lavish_"
    tuner_layer_cls = LavishLayer
    target_module_mapping = {}
    _checks_weights = False

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As in peft, after the checks."""
        config = self.peft_config[adapter_name]
        if config.target_modules is None:
            config.target_modules = DEFAULT_TARGETS
        self._check(model, adapter_name, config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if not self._checks_weights:
            self.register_load_state_dict_pre_hook(check_weights)
            self._checks_weights = True

    def _check(self, model: nn.Module, adapter_name: str, config: LavishConfig) -> None:
        modules = _own_modules(model)
        slots = {name: _slot_of(module) for name, module in modules.items() if _slot_of(module) is not None}
        example = ", ".join(name.rpartition(".")[2] for name in list(slots)[:2])
        if not slots:
            raise ValueError(
                f"{type(model).__name__} has no slots for LAVISH adapters. Build a two-stream model first: "
                "LavishForAudioVisualClassification.from_backbone(...)."
            )
        if config.target_modules == "all-linear":
            raise ValueError(
                f"`target_modules` 'all-linear' names linear layers, but LAVISH adapters belong into slots ({example}). Omit "
                "`target_modules` to have them in every slot."
            )
        if "." in adapter_name or adapter_name in {part for name in modules for part in name.split(".")}:
            raise ValueError(f"The adapter name {adapter_name!r} is the name of a module of the model. Choose another.")
        targets = [name for name in modules if name and bool(check_target_module_exists(config, name))]
        for name in targets:
            if name not in slots:
                raise ValueError(
                    f"`target_modules` {config.target_modules!r} matches {name}, a {type(modules[name]).__name__}, but LAVISH "
                    f"adapters belong into slots ({example}). Omit `target_modules` to have them in every slot."
                )
            if slots[name].audio is not None or slots[name].video is not None:
                raise ValueError(
                    f"{name} has built-in adapters. hf_avfusion.adapters.take_out(model) makes a peft model of them."
                )
        config.check(slots[name].width for name in targets)
        unknown = [
            saved
            for saved in config.modules_to_save or ()
            if not any(name == saved or name.endswith(f".{saved}") for name in modules)
        ]
        if unknown and config.task_type is None:  # with a task, peft adds the usual names of heads
            raise ValueError(
                f"`modules_to_save` names {unknown[0]!r}, but {type(model).__name__} has no such module. Name modules such as "
                "'classifier', or omit it."
            )
        check_bytes(
            sum(_bytes_of_adapters(slots[name], config) for name in targets),
            "The adapters' `num_tokens` and `reduction`",
        )

    def _create_and_replace(
        self,
        peft_config: LavishConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        device = next((each.device for each in self.model.parameters() if not each.is_meta), None)
        if isinstance(target, LavishLayer):
            target.update_layer(adapter_name, peft_config, device)
        else:
            layer = LavishLayer(target, adapter_name, peft_config, device)
            layer.set_adapter(adapter_name)
            self._replace_module(parent, target_name, layer, target)
        if adapter_name not in self.active_adapters:
            layer = getattr(parent, target_name)
            layer.set_requires_grad(adapter_name, False)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # a slot has no weight by which peft could place it

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NO_MERGE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raises NotImplementedError: adapters are not linear in their weights."""
        raise NotImplementedError(
            "LAVISH adapters are not linear in their weights, so a weighted sum of them has no meaning. Activate several adapters "
            "with set_adapter([...]) to add their residuals."
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hands `adapter_names` of a forward call to the layers, as peft's LoRA does."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        self._check_names(names, args, kwargs)
        hooks = [
            module.register_forward_pre_hook(partial(_add_names, adapter_names=names), with_kwargs=True)
            for module in self.modules()
            if isinstance(module, (LavishLayer, AuxiliaryTrainingWrapper))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check_names(self, names: list[str], args: tuple, kwargs: dict[str, Any]) -> None:
        if self.training:
            raise ValueError("`adapter_names` is for evaluation: call eval() first.")
        unknown = sorted(set(names) - set(self.peft_config) - {"__base__"})
        if unknown:
            raise ValueError(
                f"`adapter_names` names {unknown[0]!r}, but the adapters are {', '.join(self.peft_config)} (or __base__)."
            )
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        if tensors and len(tensors[0]) != len(names):
            raise ValueError(
                f"`adapter_names` names {len(names)} adapters for a batch of {len(tensors[0])}; give one per sample."
            )

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft expects the name at the end of a key, or before its last part.
        shorter, count = re.subn(rf"(\.lavish_(?:audio|video))\.{re.escape(adapter_name)}\.", r"\1.", key, count=1)
        return shorter if count else super()._remove_adapter_name_from_key(key, adapter_name)


def check_weights(
    module: LavishModel, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any, **kwargs: Any
) -> None:
    """
    A hook before weights are loaded. peft itself loads what has a known name, into the base model too, and warns of the rest.

    Raises:
        ValueError: The weights of an adapter lack a tensor, have one that is not its own, or hold a number that is not finite.
    """
    given = {name.removeprefix(prefix): values for name, values in state_dict.items() if name.startswith(prefix)}
    expected = module.state_dict().keys()
    parts = {name: _ADAPTER_NAME.search(name) for name in expected}
    adapters = {match[1] for name, match in parts.items() if match and name in given}
    if not adapters or all(name in given for name, match in parts.items() if match is None):
        return  # the weights of the base model, or of all: a checkpoint in training
    own = {name for name, match in parts.items() if match and match[1] in adapters}
    for problem, names in (
        ("lack", sorted(own - given.keys())),
        ("hold tensors that are not the adapter's:", sorted(given.keys() - own)),
        ("hold numbers that are not finite in", [name for name in sorted(given) if not given[name].isfinite().all()]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"The weights of the adapter {', '.join(sorted(adapters))} {problem} {', '.join(names[:3])}{more}. The file may be"
                " corrupt, or of another model."
            )


def _bytes_of_adapters(slot: CrossModalSlot, options: AdapterOptions) -> int:
    with torch.device("meta"), init.meta_device_safe_creation_ops():  # takes no memory
        pair = make_adapters(slot.width, slot.modalities, options)
    return sum(each.numel() * each.element_size() for part in pair if part is not None for each in part.parameters())


def _add_names(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[tuple, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": adapter_names}


def _own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the model itself, by name, without those that adapters have added."""
    added = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, (LavishLayer, AuxiliaryTrainingWrapper))
    )
    return {name: module for name, module in model.named_modules() if not name.startswith(added)}


def _slot_of(module: nn.Module) -> CrossModalSlot | None:
    """The slot that a module is or wraps."""
    module = module.get_base_layer() if isinstance(module, LavishLayer) else module
    return module if isinstance(module, CrossModalSlot) else None


register_peft_method(name="lavish", config_cls=LavishConfig, model_cls=LavishModel)

__all__ = ["LavishModel"]
