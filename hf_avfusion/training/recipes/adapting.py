"""Trains adapters of peft on a frozen base model: their options, the saved base model, and its quantisation."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig

from ...arguments import did_you_mean
from ...evaluation.adapter_checkpoints import BASE, adapter_config, base_of, load_adapter
from ...files import atomic_path
from ...models.shared.loaded_weights import load_whole

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

    from ..arguments import AVTrainingArguments
    from .recipe import Recipe
    from .run import Run

# Fields of peft's configs that this module sets, or that name the file and not the method.
_SET_HERE = {
    "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode", "auto_mapping", "peft_version",
}  # fmt: skip


def config_class(method: str) -> type[PeftConfig]:
    """The config of an adapter method, "lavish" or "lora".

    Raises:
        ValueError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise ValueError(f"--adapter {method} needs peft: pip install peft, or give --adapter none")
    if method == "lavish":
        from ...adapters.config import LavishConfig

        return LavishConfig
    from peft import LoraConfig

    return LoraConfig


def adapter_fields(method: str) -> set[str]:
    """The names that `--adapter_config` may hold for a method."""
    return {field.name for field in dataclasses.fields(config_class(method)) if field.init} - _SET_HERE


def check_adapter_fields(method: str, given: Mapping[str, Any], flag: str = "--adapter_config") -> None:
    """Raises ValueError for a name that the method's config does not have; the message names the nearest."""
    known = sorted(adapter_fields(method))
    for name in given:
        if name not in known:
            raise ValueError(
                f"{flag}: {config_class(method).__name__} has no field {name}{did_you_mean(name, known)}; its fields are "
                f"{', '.join(known)}"
            )


def heads_of(model: PreTrainedModel) -> list[str]:
    """The modules of a model beside its base model, which are trained as a whole, as names for peft's `modules_to_save`.

    peft takes every module whose name ends with a listed name. Where that would be a part of the module too (`head` and
    `head.match_head`), its parts are listed instead.

    Raises:
        ValueError: such a module has parameters that are in none of its parts.
    """
    tops = [name for name, module in model.named_children() if name != model.base_model_prefix and _is_trained(module)]
    return [name for top in tops for name in _distinct(model, top, tops)]


def _distinct(model: PreTrainedModel, name: str, tops: list[str]) -> list[str]:
    module = model.get_submodule(name)
    others = [key for key, _ in model.named_modules() if key not in (name, *tops)]
    if not isinstance(module, nn.ModuleList) and not any(key.endswith(name) for key in others):
        return [name]
    if direct := [key for key, _ in module.named_parameters(recurse=False)]:
        raise ValueError(f"{name} cannot be trained with an adapter, since its {', '.join(direct)} are in no layer")
    parts = [f"{name}.{part}" for part, child in module.named_children() if _is_trained(child)]
    return [found for part in parts for found in _distinct(model, part, tops)]


def _is_trained(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def norms_of(model: PreTrainedModel) -> list[str]:
    """The norms of the base model, by the published rule: layers whose name contains "norm" (the original's `is_vit_ln`)."""
    prefix = f"{model.base_model_prefix}."
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix)
        and "norm" in name.rpartition(".")[2]
        and any(True for _ in module.parameters(recurse=False))
    ]


def linear_layers(model: PreTrainedModel) -> str:
    """A regular expression for the dense layers of the base model, the targets of LoRA where none are given."""
    prefix = model.base_model_prefix
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{prefix}.")
    }
    return rf"{prefix}\.(.*\.)?({'|'.join(sorted(name for name in names if not name.isdigit()))})"


def make_config(recipe: Recipe, model: PreTrainedModel) -> PeftConfig:
    """The config of the recipe's adapter for a model.

    Raises:
        ValueError: fields that the method does not have, or values that it refuses.
    """
    fields = dict(recipe.adapter)
    check_adapter_fields(recipe.adapter_method, fields)
    if recipe.adapter_method == "lora":
        fields.setdefault("target_modules", linear_layers(model))
    saved = [*heads_of(model), *(norms_of(model) if recipe.train_norms else ())]
    fields["modules_to_save"] = list(dict.fromkeys([*saved, *(fields.get("modules_to_save") or ())]))
    try:
        return config_class(recipe.adapter_method)(**fields)
    except TypeError as error:
        raise ValueError(f"--adapter_config {dict(recipe.adapter)}: {error}") from error


def add_adapter(
    model: PreTrainedModel, processor: Any, run: Run, args: AVTrainingArguments
) -> PreTrainedModel | PeftModel:
    """The model with the adapter of the run, on a base model that is saved and quantised as the run wants it.

    The adapter is a new one of the recipe, or that of the run's checkpoint, which is trained further; without either, the model is
    returned as it is.

    Args:
        model: the base model with its head.

    Raises:
        ValueError: options that the method or the model refuses, another base model in the run's folder, or a package is missing.
    """
    recipe = run.recipe
    continued = run.checkpoint is not None and adapter_config(run.checkpoint) is not None
    if recipe.adapter_method is None and not continued:
        return model
    config = None if continued else make_config(recipe, model)
    quantization = None
    if recipe.quantize is not None:
        quantization = quantization_config(recipe.quantize, config.modules_to_save)
    start = base_of(run.checkpoint) if continued else run.checkpoint
    state = torch.get_rng_state()  # adapters start alike, whether or not models were loaded before
    if config is not None:  # what does not fit is refused before a base model is written
        with torch.device("meta"):
            _inject(type(model)(copy.deepcopy(model.config)), copy.deepcopy(config))
    with args.main_process_first(local=False, desc="saving the base model"):
        base = keep_base(model, processor, start, Path(args.output_dir), writes=args.process_index == 0)
    if quantization is not None:
        model = type(model).from_pretrained(base, quantization_config=quantization)
    torch.set_rng_state(state)
    # Folders are absolute, since peft and transformers would look from the current folder.
    base = str(Path(base).absolute()) if Path(base).is_dir() else base
    if continued:
        model = load_adapter(run.checkpoint, model, trainable=True, new_heads=heads_of(model))
        model.peft_config[model.active_adapter].base_model_name_or_path = base
        return model
    model.name_or_path = base  # where peft takes it from
    return _inject(model, config)


def _inject(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """`get_peft_model`. Raises ValueError if the config does not fit the model."""
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--adapter {config.peft_type.value.lower()}: {error}") from error


def keep_base(model: PreTrainedModel, processor: Any, checkpoint: str | None, output_dir: Path, *, writes: bool) -> str:
    """Where the base model of a run is: the checkpoint that it was loaded from, or else a folder in `output_dir` to save it in.

    The folder is written atomically, before the first step. A resumed run finds the same there.

    Args:
        checkpoint: what the run starts from.
        writes: whether this process writes.

    Raises:
        ValueError: the folder holds another base model.
    """
    if checkpoint is not None and _is_same_model(model, checkpoint):
        return checkpoint
    folder = output_dir / BASE
    if not writes:
        return str(folder)
    if folder.exists():
        if not _is_same_model(model, str(folder)):
            raise ValueError(
                f"{folder} holds the base model of an earlier run, which is not the one that this command makes: give another "
                "--output_dir, or the command of the earlier run (the same start and --seed) to resume it."
            )
        return str(folder)
    with atomic_path(folder) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was stopped while it wrote
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    return str(folder)


def _is_same_model(model: PreTrainedModel, checkpoint: str) -> bool:
    """Whether a checkpoint holds exactly this model."""
    ours, theirs = model.config.to_dict(), AutoConfig.from_pretrained(checkpoint).to_dict()
    left_out = ("transformers_version", "_name_or_path", "dtype", "architectures")
    if _without(ours, left_out) != _without(theirs, left_out):
        return False
    try:
        saved = load_whole(type(model), checkpoint).state_dict()
    except (ValueError, OSError):
        return False
    own = model.state_dict()
    return saved.keys() == own.keys() and all(torch.equal(saved[name].to(own[name]), own[name]) for name in own)


def _without(values: Any, names: tuple[str, ...]) -> Any:
    """The values without these names, also in nested configs, as JSON would hold them."""
    if isinstance(values, dict):
        return {str(name): _without(value, names) for name, value in values.items() if name not in names}
    return [_without(value, names) for value in values] if isinstance(values, (list, tuple)) else values


def quantization_config(kind: str, left_out: list[str]) -> Any:
    """The `quantization_config` of transformers for `--quantize`.

    Args:
        kind: "int8" (torchao, weights only) or "4bit" (bitsandbytes, nf4).
        left_out: modules that stay as they are, since they are trained.

    Raises:
        ValueError: the package is not installed.
    """
    package = {"int8": "torchao", "4bit": "bitsandbytes"}[kind]
    if find_spec(package) is None:
        raise ValueError(f"--quantize {kind} needs {package}: pip install {package}, or leave --quantize out")
    if kind == "4bit":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=left_out)
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=left_out)
