"""Builds the parts of a run from a recipe: processor, model, augmentation, collator."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import AutoConfig, AutoProcessor, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from ...auto import AutoModelForAudioVisualClassification
from ...data.augmentation import FrameAugmentation, SpecAugment
from ...data.collating import AVCollator
from ...evaluation.adapter_checkpoints import adapter_config, base_of
from ...media.windows import WindowPolicy
from ...models.shared.configuration_shared import as_pair
from ...processing.feature_extraction_avfusion import PRESETS, AVFusionFeatureExtractor
from ...processing.video_processing_avfusion import AVFusionVideoProcessor
from ...tasks import TASKS, Task
from ...tasks.task import RowLabels
from ..arguments import AVTrainingArguments
from .adapting import adapter_fields
from .nested_fields import field_names, flat_fields, nested_fields, place_fields, unknown_fields
from .recipe import Recipe
from .run import Run


def known_fields(section: str, architecture: str) -> set[str]:
    """The field names that a section of a recipe may hold. Fields of sub-configurations have dotted names."""
    if section in ("model", "regularization"):
        return field_names(CONFIG_MAPPING[architecture]())
    if section == "adapter":
        return adapter_fields("lavish") | adapter_fields("lora")
    if section == "window":
        return {field.name for field in fields(WindowPolicy)}
    if section == "audio":
        return set(inspect.signature(AVFusionFeatureExtractor.__init__).parameters) - {"self", "kwargs"}
    if section == "video":
        return set(AVFusionVideoProcessor().to_dict()) - {"video_processor_type"}
    if section == "frame_augmentation":
        return {field.name for field in fields(FrameAugmentation)}
    if section == "spec_augment":
        return {field.name for field in fields(SpecAugment)}
    if section == "collator":
        return {name for task in TASKS.values() for name in task.collator_class.RECIPE_FIELDS}
    if section == "training":
        return {field.name for field in fields(AVTrainingArguments) if field.init}
    raise ValueError(f"A recipe has no section {section!r}.")


def build_processor(
    recipe: Recipe,
    head: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    decided_by_data: Mapping[str, Any] | None = None,
) -> Any:
    """The architecture's processor with the recipe's window, audio and video settings.

    What the recipe leaves open is as the architecture demands it (`front_end` of the configuration), or else its processor's
    default.

    Args:
        head: as for `build_fresh`. Its `num_segments` is also that of the window, if the processor cuts clips into segments.
        source: as `source_fields` returns it.
        decided_by_data: more arguments of the processor (`Task.processor_fields`).

    Raises:
        ValueError: the processor has no such arguments, or fields contradict each other; raised by the parts of the processor.
    """
    config_class = CONFIG_MAPPING[recipe.architecture]
    processor_class = PROCESSOR_MAPPING[config_class]
    front = config_class.front_end(recipe.size, {**nested_fields(recipe.model), **(source or {})})
    decided = {name: front[name] for name in ("num_frames", "num_segments") if name in front} | dict(recipe.window)
    if processor_class.takes_segments and "num_segments" in (head or {}):
        decided["num_segments"] = head["num_segments"]
    window = WindowPolicy.from_dict({**processor_class.default_window.to_dict(), **decided})
    video = {**processor_class.frames_of_size(*front["image_size"])} if "image_size" in front else {}
    audio = _front_end_of_audio(recipe, processor_class, window, front)
    extractor, more = AVFusionFeatureExtractor(**audio), {**front.get("processor", {}), **(decided_by_data or {})}
    if absent := more.keys() - inspect.signature(processor_class).parameters.keys():
        raise ValueError(
            f"{processor_class.__name__} of {recipe.architecture} takes no {', '.join(sorted(absent))}, which the data need: "
            "choose another --model."
        )
    return processor_class(AVFusionVideoProcessor(**{**video, **recipe.video}), extractor, window=window, **more)


def _front_end_of_audio(
    recipe: Recipe, processor_class: type, window: WindowPolicy, front: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of the feature extractor, with the number of spectrogram frames of one window."""
    preset = PRESETS[front.get("audio_preset", processor_class.audio_preset)]
    fixed = {name: front[name] for name in ("spectrogram_length", "num_mel_bins") if name in front}
    audio = {**preset, **fixed, **recipe.audio}
    with_segments = window.num_segments is not None
    seconds = window.segment_seconds if with_segments else window.audio_seconds
    if "spectrogram_length" in fixed:
        # The length is fixed, so its frames are spread over the window; 1 s at 192 frames gives the published hop.
        if "hop_length" not in recipe.audio:
            audio["hop_length"] = int(seconds * audio["sampling_rate"] / audio["spectrogram_length"])
        return audio
    published = with_segments and seconds == processor_class.default_window.segment_seconds
    same_frames = not {"hop_length", "sampling_rate"} & set(recipe.audio)
    if "spectrogram_length" not in recipe.audio and not (published and same_frames):
        audio["spectrogram_length"] = round(seconds * audio["sampling_rate"] / audio["hop_length"])
    return audio


def source_fields(recipe: Recipe, auto_class: type) -> dict[str, Any]:
    """The sub-configuration that comes with the weights of `recipe.init`, by its field; {} if none does.

    Raises:
        OSError: `recipe.init` is not found.
    """
    model_class = auto_class._model_mapping[CONFIG_MAPPING[recipe.architecture]]
    method = getattr(model_class, "start_methods", {}).get(recipe.init_method)
    if recipe.init is None or method is None or method.sub_config is None:
        return {}
    return {method.sub_config: AutoConfig.from_pretrained(recipe.init)}


def sections_of_processor(processor: Any) -> dict[str, dict[str, Any]]:
    """The sections `window`, `audio` and `video` of a recipe that builds an equal processor."""
    window, extractor = dict(processor.window), processor.feature_extractor
    audio = {name: getattr(extractor, name) for name in known_fields("audio", "") if hasattr(extractor, name)}
    derived = round(window["audio_seconds"] * extractor.sampling_rate / extractor.hop_length)
    # If it is derived from the window, flags may change it.
    if window["num_segments"] is None and extractor.spectrogram_length == derived:
        del audio["spectrogram_length"]
    saved = processor.video_processor.to_dict()
    return {"window": window, "audio": audio, "video": {n: saved[n] for n in known_fields("video", "") if n in saved}}


def input_sizes(processor: Any) -> dict[str, Any]:
    """The fields of a configuration that hold the sizes of the processor's output."""
    crop, segments = processor.video_processor.crop_size, processor.window["num_segments"]
    sizes = {
        "image_size": crop.height if crop.height == crop.width else (crop.height, crop.width),
        "num_frames": processor.window["num_frames"] * (segments or 1),
        "num_mel_bins": processor.feature_extractor.num_mel_bins,
        "spectrogram_length": processor.feature_extractor.spectrogram_length,
    }
    if getattr(processor, "vocab", None) is not None:
        sizes["vocab_size"] = len(processor.vocab)
    return {**sizes, "num_segments": segments} if processor.takes_segments else sizes


def allow_broken_row(sizes: dict[str, Any], patch_size: Any) -> dict[str, Any]:
    """Adds `drop_remainder` to the sizes if the last rows of the spectrogram fill no patch.

    The window's seconds decide the length of the spectrogram, as in the originals, which do not use such rows.
    """
    broken = sizes.get("spectrogram_length", 0) % as_pair("patch_size", patch_size)[0]
    return {**sizes, "drop_remainder": True} if broken else sizes


def default_config(
    recipe: Recipe, fields: Mapping[str, Any], source: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The configuration of the recipe's architecture and size, with the types of sub-configurations that `fields` name.

    Args:
        source: as `source_fields` returns it.
    """
    config_class = CONFIG_MAPPING[recipe.architecture]
    types = nested_fields({name: value for name, value in fields.items() if name.endswith(".model_type")})
    given = {**types, **(source or {})}
    demanded = config_class.front_end(recipe.size, given)
    known = ("image_size", "num_segments", "num_frames", "spectrogram_length", "num_mel_bins")
    return getattr(config_class, recipe.size)(**{n: demanded[n] for n in known if n in demanded}, **given)


def config_values(
    recipe: Recipe, head: dict[str, Any], processor: Any, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields of a new model's configuration that processor, labels and recipe decide, except the model's size.

    Args:
        source: as `source_fields` returns it. Its own sizes are left as they are.

    Raises:
        ValueError: the labels need a field that the architecture's configuration lacks.
    """
    default = default_config(recipe, recipe.model, source)
    if absent := [name for name in head if not hasattr(default, name)]:
        raise ValueError(
            f"{recipe.architecture} has no {', '.join(absent)}, which the labels need: choose another --model."
        )
    patch = recipe.model.get("patch_size", getattr(default, "patch_hw", 1))
    sizes = place_fields(default, allow_broken_row(input_sizes(processor), patch))
    sizes = {name: value for name, value in sizes.items() if name.partition(".")[0] not in (source or {})}
    return nested_fields({**sizes, **head, **recipe.model, **recipe.regularization})


def build_fresh(
    recipe: Recipe,
    head: dict[str, Any],
    auto_class: type = AutoModelForAudioVisualClassification,
    decided_by_data: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Builds the processor and a new model, with random weights or those of `recipe.init`.

    The processor decides the model's input sizes.

    Args:
        recipe: its `architecture`, `size`, `init`, `init_method` and sections are used. With `init`, that model decides the size.
        head: fields of the configuration that the labels decide (`Task.config_fields`).
        auto_class: selects one of the architecture's models.
        decided_by_data: see `build_processor`.

    Raises:
        ValueError: the architecture has no such model, or its configuration does not accept the fields.
    """
    config_class = CONFIG_MAPPING[recipe.architecture]
    if config_class not in auto_class._model_mapping:
        known = ", ".join(config.model_type for config in auto_class._model_mapping)
        raise ValueError(
            f"{recipe.architecture} has no model for {auto_class.__name__}: choose an architecture that has one ({known})."
        )
    source = source_fields(recipe, auto_class)
    processor = build_processor(recipe, head, source, decided_by_data)
    values = config_values(recipe, head, processor, source)
    model_class = auto_class._model_mapping[config_class]
    methods = [recipe.init_method] if recipe.init is not None else []
    for method in (*methods, *recipe.part_inits):
        if getattr(model_class, method, None) is None:
            raise ValueError(f"{recipe.architecture} has no `{method}`: leave --{method} out.")
    if recipe.init is not None:
        model = getattr(model_class, recipe.init_method)(recipe.init, **values)
    else:
        model = auto_class.from_config(getattr(config_class, recipe.size)(**values))
    for method, part_source in recipe.part_inits.items():
        getattr(model, model_class.start_methods[method].part)(part_source)
    return processor, model


def load_checkpoint(
    run: Run,
    head: dict[str, Any],
    auto_class: type = AutoModelForAudioVisualClassification,
    decided_by_data: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Loads the processor and the model of a run's checkpoint, with the recipe's regularization and the fields of `--config`.

    Sizes are the checkpoint's, and so are windows unless flags change them. Only the head may be newly initialised. Of an adapter,
    this is the base model (`adapting.add_adapter` loads the adapter).

    Args:
        decided_by_data: see `build_processor`; fields that the saved processor has keep their values.

    Raises:
        ValueError: the checkpoint has another architecture than the named recipe, or weights outside the head are missing (for
            example after a `--config` that changes sizes, or with another number of frames and learned positions).
    """
    # The base model of an adapter has the configuration; the adapter has the processor.
    source = run.checkpoint if adapter_config(run.checkpoint) is None else base_of(run.checkpoint)
    config = AutoConfig.from_pretrained(source)
    if run.published is not None and config.model_type != run.recipe.architecture:
        raise ValueError(
            f"--recipe {run.name} is for {run.recipe.architecture}, but {run.checkpoint} is a checkpoint of {config.model_type}:"
            " choose a recipe for that architecture, or leave --recipe out."
        )
    processor = AutoProcessor.from_pretrained(run.checkpoint)
    given = flat_fields(json.loads(run.flags.get("config", "{}")), config.sub_configs)
    window, sizes = {name: run.flags[name] for name in ("num_frames", "span", "audio_seconds") if name in run.flags}, {}
    segments = {**head, **given}.get("num_segments", processor.window["num_segments"])
    if processor.takes_segments and segments != processor.window["num_segments"]:
        window["num_segments"] = segments
    window |= {n: v for n, v in (decided_by_data or {}).items() if getattr(processor, n, None) is None}
    if window:
        before, extractor = input_sizes(processor), processor.feature_extractor
        if "audio_seconds" in window or ("num_segments" in window and segments is None):
            seconds = window.get("audio_seconds", processor.window["audio_seconds"])
            rows = round(seconds * extractor.sampling_rate / extractor.hop_length)
            window["spectrogram_length"] = rows
        processor = AutoProcessor.from_pretrained(run.checkpoint, **window)
        changed = {name: value for name, value in input_sizes(processor).items() if value != before.get(name)}
        sizes = place_fields(config, allow_broken_row(changed, getattr(config, "patch_hw", 1)))
    if absent := unknown_fields(config, (*head, *given)):
        raise ValueError(
            f"{run.checkpoint} is a checkpoint of {config.model_type}, whose configuration has no field {', '.join(absent)}:"
            " leave it out, or choose another --model."
        )
    fields = nested_fields({**run.recipe.regularization, **sizes, **head, **given})
    config = AutoConfig.from_pretrained(source, **fields)
    model, report = auto_class.from_pretrained(
        source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    fresh = {
        entry if isinstance(entry, str) else entry[0] for entry in (*report["missing_keys"], *report["mismatched_keys"])
    }
    if outside_head := sorted(name for name in fresh if name.startswith(f"{model.base_model_prefix}.")):
        raise ValueError(
            f"{run.checkpoint} has no weights that fit {', '.join(outside_head[:5])}{', ...' if len(outside_head) > 5 else ''}:"
            " leave out the flags and the fields of --config that change sizes or add streams."
        )
    return processor, model


def build_frame_augmentation(recipe: Recipe, processor: Any) -> FrameAugmentation | None:
    """The recipe's frame augmentation at the processor's crop and short side; None if the recipe has none."""
    if recipe.frame_augmentation is None:
        return None
    return FrameAugmentation.for_processor(processor.video_processor, **recipe.frame_augmentation)


def reading_options(labels: RowLabels, config: Any, *, allow_urls: bool) -> dict[str, Any]:
    """The arguments of `ClipTransform` that training and evaluation of a run share.

    Args:
        labels: reads the labels of a row.
        config: of the model. Modalities that the model does not use are not decoded.
        allow_urls: that of the command line.
    """
    return {"labels": labels, "modalities": config.modalities, "allow_urls": allow_urls}


def build_collator(recipe: Recipe, config: Any, seed: int, *, task: Task | None = None, **options: Any) -> AVCollator:
    """The training collator of a task for a model's configuration; `options` are more arguments of the collator's class.

    Args:
        task: by default the recipe's.
    """
    task = task or TASKS[recipe.task]
    if unknown := recipe.collator.keys() - {*task.collator_class.RECIPE_FIELDS}:
        raise ValueError(f"collator.{min(unknown)}: a run for {task.title} has no such setting: leave it out.")
    return task.collator_class.for_model(
        config,
        spec_augment=None if recipe.spec_augment is None else SpecAugment(**recipe.spec_augment),
        seed=seed,
        **{**recipe.collator, **options},
    )
