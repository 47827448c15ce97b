"""Command-line parsing with a recipe: its values are the defaults of the flags, and flags override them."""

import json
import os
import sys
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoProcessor, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from ...arguments import argument_parser
from ...auto import ARCHITECTURES, load_reference
from ...evaluation.adapter_checkpoints import adapter_config, base_of
from ...files import parse_json
from ...media.sources import one_line
from ...models.shared.start_methods import StartMethod
from ...tasks import TASKS
from . import PLAIN_FIELDS, get_recipe
from .adapting import check_adapter_fields
from .batches import learning_rate_for, share_batch
from .building import default_config, known_fields, sections_of_processor
from .nested_fields import flat_fields, unknown_fields
from .options import SETTABLE, RecipeOptions
from .recipe import Recipe
from .run import Run

# Errors caused by wrong arguments, data or checkpoints. Configurations raise StrictDataclassError for wrong fields.
USER_ERRORS = (ValueError, OSError, StrictDataclassError)

# The default without --recipe: a new MBT-Base as released, its augmentation, no mixup, the Trainer's training defaults. A task may
# change fields of it (`Task.plain_recipe`).
PLAIN = Recipe(architecture="mbt", source="the defaults of the package", collator={"mixup_alpha": 0.0})

FRESH_ONLY = ("size", "start", "image_size")


def architecture_of(model: str) -> str | None:
    """The architecture that `--model` names, or that of the checkpoint; None if it cannot be read (loading it fails later)."""
    if model in CONFIG_MAPPING:
        return model
    try:
        base = model if adapter_config(model) is None else base_of(model)
        return AutoConfig.from_pretrained(base).model_type
    except (OSError, ValueError):
        return None


def start_methods() -> dict[str, StartMethod]:
    """The start methods of all model classes by name."""
    classes = {reference for *_, models in ARCHITECTURES for reference in models.values()}
    loaded = (load_reference(reference) for reference in sorted(classes))
    return {name: method for each in loaded for name, method in getattr(each, "start_methods", {}).items()}


def _start_options(methods: Mapping[str, StartMethod]) -> type:
    """A dataclass with a flag for each start method."""

    def flag(method: StartMethod) -> Any:
        text = f"Initialise a new model from {method.source}; `none` for random weights."
        return field(default=None, metadata={"help": text})

    return make_dataclass("StartOptions", [(name, str | None, flag(method)) for name, method in methods.items()])


def parse_with_recipe(
    options_class: type,
    arguments_class: type[TrainingArguments],
    args: Sequence[str] | None = None,
    *,
    task: str = "classification",
) -> tuple[Run, Any, Any]:
    """Parses the flags of `RecipeOptions` and of two dataclasses; returns (run, options, training arguments).

    The training arguments are set such that devices x `per_device_train_batch_size` x `gradient_accumulation_steps` equals
    the recipe's batch size (or `--global_batch_size`).

    Raises:
        ValueError: the recipe is unknown (the message lists all), flags contradict it or each other, the batch cannot be
            divided, or the recipe has no learning rate for this batch size.
    """
    args = list(sys.argv[1:] if args is None else args)
    methods = start_methods()
    types = (RecipeOptions, _start_options(methods), options_class, arguments_class)
    flags = _explicit_flags(types, args)
    name = flags.get("recipe")
    published = get_recipe(name) if name is not None else None
    base = published
    if published is None:
        usual = TASKS[task].plain_recipe.get("architecture", PLAIN.architecture)
        own = PLAIN_FIELDS.get(architecture_of(flags.get("model", usual)), {})
        base = replace(PLAIN, task=task, **{**own, **TASKS[task].plain_recipe})
    if published is not None and published.task != task:
        raise ValueError(f"--recipe {name} is for {published.task}, not for {task}: choose another recipe.")

    parser = argument_parser(*types)
    parser.strict = False  # unknown options are a ValueError, with all of them; scripts have named the nearest before
    names = {action.dest for action in parser._actions}
    defaults = _defaults(base)
    if base.benchmark is not None and flags.get("data") == base.benchmark:  # these defaults only fit its own benchmark
        defaults |= _benchmark_defaults(base)
    parser.set_defaults(**{name: value for name, value in defaults.items() if name in names})
    options, _, script_options, arguments = parser.parse_args_into_dataclasses(
        args, look_for_args_file=False, exits=False
    )
    # Read after parsing, because `world_size` starts the communication between processes.
    devices = arguments.world_size * max(1, arguments.n_gpu)
    batch = base.batch_size if options.global_batch_size is None else options.global_batch_size
    if batch is not None:
        if published is not None and "learning_rate" not in flags:
            parser.set_defaults(learning_rate=learning_rate_for(published, name, batch))
        given = [flags.get(flag) for flag in ("per_device_train_batch_size", "gradient_accumulation_steps")]
        per_device, accumulation = share_batch(batch, devices, *given)
        parser.set_defaults(per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation)
        # Parse again, since other fields may have been derived from the batch size.
        options, _, script_options, arguments = parser.parse_args_into_dataclasses(
            args, look_for_args_file=False, exits=False
        )
    if arguments.deepspeed:
        # With ZeRO-3, transformers would shard the model while building it, so that no ViT weights could be copied into it.
        # The model is built whole; `AVTrainer` sets this configuration again, which shards the model.
        unset_hf_deepspeed_config()
    checkpoint = options.model if options.model not in CONFIG_MAPPING else None
    if checkpoint is not None:
        if ignored := [flag for flag in (*FRESH_ONLY, *methods) if flag in flags]:
            raise ValueError(
                f"--{', --'.join(ignored)}: allowed for a new model only, but {checkpoint} is a checkpoint: leave"
                f" {'them' if len(ignored) > 1 else 'it'} out"
            )
        if ignored := [text for text in options.set or [] if text.startswith(("window.", "audio.", "video."))]:
            raise ValueError(
                f"--set {' '.join(ignored)}: allowed for a new model only, but {checkpoint} has its own processor: leave"
                f" {'them' if len(ignored) > 1 else 'it'} out"
            )
    elif published is not None and options.model != base.architecture:
        raise ValueError(
            f"--recipe {name} is for {base.architecture}, not for --model {options.model}: leave --model out, or choose"
            " another recipe."
        )
    start = replace(base, architecture=base.architecture if checkpoint else options.model, size=options.size)
    if checkpoint is None:
        sizes = CONFIG_MAPPING[start.architecture].sizes()
        if options.size not in sizes:
            raise ValueError(
                f"--size {options.size}: choose one of the sizes of {start.architecture}: {', '.join(sizes)}"
            )
        start = _with_start(start, name, options, flags, methods)
    recipe = _with_flags(start, options, flags)
    if checkpoint is None:
        _check_parts(recipe, name, flags, methods)
    is_cut = checkpoint is None and PROCESSOR_MAPPING[CONFIG_MAPPING[recipe.architecture]].takes_segments
    if is_cut and hasattr(script_options, "num_segments"):
        recipe = recipe.replace(window={"num_segments": script_options.num_segments})
    recipe = replace(_with_adapter(recipe, options, checkpoint, flags), batch_size=batch)
    if recipe.collator.get("mixup_alpha") and arguments.train_batch_size < 2:
        raise ValueError(
            f"Mixup (alpha {recipe.collator['mixup_alpha']:g}) mixes the clips of one forward pass, but"
            " --per_device_train_batch_size is 1: set it to 2 or more, or give --mixup_alpha 0."
        )
    return Run(recipe, name, published, checkpoint, flags, devices), script_options, arguments


def _explicit_flags(types: tuple[type, ...], args: list[str]) -> dict[str, Any]:
    """The flags on the command line and their values, without any defaults."""
    parser = argument_parser(*types, add_help=False)
    parser.strict = False
    for action in parser._actions:
        action.default, action.required = SUPPRESS, False
    namespace, _ = parser.parse_known_args(args)
    return vars(namespace)


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values under the names of the flags."""
    return {
        "model": recipe.architecture,
        "size": recipe.size,
        "augment": recipe.frame_augmentation is not None,
        "spec_augment": recipe.spec_augment is not None,
        "mixup_alpha": recipe.collator.get("mixup_alpha", 0.0),
        "adapter": recipe.adapter_method or "none",
        "train_norms": recipe.train_norms,
        "quantize": recipe.quantize,
        "num_segments": recipe.window.get("num_segments"),  # this and the next: skipped where a script has no such flag
        "eval_protocol": recipe.views,
        **recipe.training,
    }


def _benchmark_defaults(recipe: Recipe) -> dict[str, Any]:
    values = {"variant": recipe.variant, "label_columns": recipe.label_columns and list(recipe.label_columns)}
    return {name: value for name, value in values.items() if value is not None}


def _with_start(
    recipe: Recipe, name: str | None, options: RecipeOptions, flags: dict[str, Any], methods: Mapping[str, StartMethod]
) -> Recipe:
    """The recipe with the initial weights of a new model: those that the flags name, else the recipe's."""
    given = {method: flags[method] for method in methods if method in flags}
    if options.start is not None:
        method, _, source = options.start.partition("=")
        if options.start.lower() == "none":
            method, source = recipe.init_method, "none"
        elif method not in methods or not source:
            raise ValueError(
                f"--start {options.start}: give METHOD=SOURCE with one of the methods {', '.join(methods)}, or `none` for random "
                "weights"
            )
        given |= {method: source} if method not in given else {"": source}
    parts = {method: given.pop(method) for method in [*given] if method and methods[method].part is not None}
    recipe = replace(recipe, part_inits={n: source for n, source in parts.items() if source.lower() != "none"})
    if len(given) > 1:
        names = " and ".join(f"--{method or 'start'}" for method in given)
        raise ValueError(f"{names}: a model can start from only one source; give only one of them.")
    for method, source in given.items():
        init = None if source.lower() == "none" else source
        recipe = replace(recipe, init=init, init_method=method)
        if name is None and init is not None and methods[method].own_processor:
            # Without a recipe, clips are processed as for the source checkpoint.
            recipe = recipe.replace(**sections_of_processor(AutoProcessor.from_pretrained(init)))
    if not given and recipe.init is None and methods[recipe.init_method].own_processor:
        raise ValueError(
            f"--recipe {name} starts from {methods[recipe.init_method].source}: name it with --{recipe.init_method}, or start "
            f"from random weights with --{recipe.init_method} none."
        )
    if recipe.init is not None and "size" in flags:
        raise ValueError(
            f"--size {options.size}: the model has the size of {recipe.init}, from which it starts. Leave --size out, or name"
            f" another source with --{recipe.init_method} (`none` for random weights)."
        )
    return recipe


def _check_parts(recipe: Recipe, name: str | None, flags: dict[str, Any], methods: Mapping[str, StartMethod]) -> None:
    """Raises ValueError if a part of a new model that is no use with random weights has no source, or a source has no part."""
    for method, part in methods.items():
        if part.switch is not None and method in flags and not recipe.model.get(part.switch):
            raise ValueError(
                f"--{method} {flags[method]}: the model has no part that starts from it. Give --config "
                f"'{{\"{part.switch}\": true}}' too, or leave --{method} out."
            )
        needed = part.switch is not None and recipe.model.get(part.switch) and method not in recipe.part_inits
        if needed and method not in flags and flags.get("start", "").lower() != f"{method}=none":
            raise ValueError(
                f"{f'--recipe {name}' if name else '--config'} has {part.switch}=true, whose part starts from {part.source}: "
                f"name it with --{method}, or give --{method} none for random weights."
            )


def _with_flags(recipe: Recipe, options: RecipeOptions, flags: dict[str, Any]) -> Recipe:
    config = json_object("--config", options.config)
    config_class = CONFIG_MAPPING[recipe.architecture]
    config = flat_fields(config, config_class.sub_configs)
    is_new = options.model in CONFIG_MAPPING  # `load_checkpoint` checks the fields for a checkpoint
    if is_new and (unknown := unknown_fields(default_config(recipe, config), config)):
        raise ValueError(
            f"--config: {config_class.__name__} has no fields {', '.join(unknown)}; check their spelling or leave them out"
        )
    changes = {
        "model": {name: value for name, value in config.items() if name not in recipe.regularization},
        "regularization": {name: value for name, value in config.items() if name in recipe.regularization},
        "window": {name: flags[name] for name in ("num_frames", "span", "audio_seconds") if name in flags},
        "collator": {"mixup_alpha": options.mixup_alpha},
    }
    if "image_size" in flags:
        side = options.image_size
        changes["video"] = PROCESSOR_MAPPING[config_class].frames_of_size(side, side)
    # These sections can be switched off, and on where the recipe has none.
    for section, on in (("frame_augmentation", options.augment), ("spec_augment", options.spec_augment)):
        changes[section] = None if not on else (getattr(recipe, section) or {})
    for text in options.set or []:
        section, name, value = _setting(text, recipe.architecture)
        if changes.get(section, {}) is None:
            raise ValueError(f"--set {text}: {section} is switched off; switch it on or leave this value out")
        changes[section] = {**changes.get(section, {}), name: value}
    return recipe.replace(**changes)


ADAPTER_FLAGS = ("adapter", "adapter_config", "train_norms", "quantize")


def _with_adapter(recipe: Recipe, options: RecipeOptions, checkpoint: str | None, flags: dict[str, Any]) -> Recipe:
    """The recipe with the adapter that the flags choose."""
    given = [flag for flag in ADAPTER_FLAGS if flag in flags]
    if checkpoint is not None and adapter_config(checkpoint) is not None:
        if given:
            raise ValueError(
                f"--{', --'.join(given)}: allowed for a whole model only, but {checkpoint} is an adapter, which is trained further "
                f"with its own options: leave {'them' if len(given) > 1 else 'it'} out"
            )
        return replace(recipe, adapter_method=None, adapter={}, train_norms=False, quantize=None)
    method = None if options.adapter == "none" else options.adapter
    if method is None:
        idle = [flag for flag in given if flag != "adapter" and flags[flag] not in ("{}", False, None)]
        if idle:
            raise ValueError(f"--{', --'.join(idle)}: needs an adapter: give --adapter lavish or --adapter lora")
        return replace(recipe, adapter_method=None, adapter={}, train_norms=False, quantize=None)
    architecture = recipe.architecture if checkpoint is None else architecture_of(checkpoint)
    if method == "lavish" and architecture not in (None, "lavish"):
        raise ValueError(f"--adapter lavish: {architecture} has no places for these adapters: give --adapter lora")
    fields = json_object("--adapter_config", options.adapter_config)
    check_adapter_fields(method, fields)
    own = recipe.adapter if method == recipe.adapter_method else {}
    changes = {"train_norms": options.train_norms, "quantize": options.quantize}
    return replace(recipe, adapter_method=method, adapter={**own, **fields}, **changes)


def json_object(flag: str, text: str) -> dict[str, Any]:
    """Parses a flag with a JSON object. Raises ValueError naming the flag."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f'{flag} {text!r} must be a JSON object, such as {{"hidden_size": 192}}')
    return values


def _setting(text: str, architecture: str) -> tuple[str, str, Any]:
    """ "window.frame_rate=25" -> ("window", "frame_rate", 25); a value that is not JSON is a string."""
    key, equals, value = text.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot or section not in SETTABLE:
        raise ValueError(f"--set {text}: expected SECTION.FIELD=VALUE with one of the sections {', '.join(SETTABLE)}")
    known = known_fields(section, architecture)
    if name not in known:
        raise ValueError(f"--set {text}: {section} has no field {name}; it has {', '.join(sorted(known))}")
    try:
        return section, name, json.loads(value)
    except json.JSONDecodeError:
        return section, name, value


def exit_with_error(error: Exception) -> int:
    """Prints the error to stderr in one line and returns the exit status 2.

    With several processes, each prints its own error, since they may differ. All but the first process of a machine also
    print their rank.
    """
    rank = os.environ.get("RANK", "0") if os.environ.get("LOCAL_RANK", "0") != "0" else None
    print(f"error{f' (process {rank})' if rank is not None else ''}: {one_line(error)}", file=sys.stderr)
    return 2
