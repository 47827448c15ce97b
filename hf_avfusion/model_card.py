"""
Writes the model card of an exported checkpoint from the model, its processor, its results and its architecture's card in
`model_cards/`. Facts that are not known are marked as not stated.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, ProcessorMixin

from .files import markdown_cell, read_json
from .processing.vggish_examples import EXAMPLE_ROWS, seconds_of_examples, vggish_front_end
from .tasks import DEFAULT_TASK, task_of
from .tasks.task import Task
from .training.recipes.record import changes

# An installed package holds the cards next to this file, a clone at its top level.
_INSTALLED = Path(__file__).parent / "model_cards"
CARDS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "model_cards"
REQUIREMENTS = '"transformers>=5.23" torch torchvision torchaudio av'  # imports of the exported code
LICENCE_OF_CODE = "apache-2.0"
SHOWN_WORDS = 20  # of a vocabulary

# Figures of a run that are not metrics of the model.
_NON_METRICS = re.compile(
    r"(_|^)(runtime|samples_per_second|steps_per_second|model_preparation_time|epoch|total_flos|loss)$"
)


@dataclass(frozen=True)
class Evaluation:
    """Metrics measured on one split.

    Args:
        dataset: name of the dataset.
        split: name of the split.
        metrics: name -> value, as printed by the evaluation.
        dataset_id: repository of the dataset on the Hub, if it has one.
        condition: conditions other than the plain evaluation with both modalities, such as "audio only".
        views: windows per clip; None if not known.
        seeds: of the evaluated runs; None if not known.
        num_clips: scored clips; None if not known.
        skipped_clips: clips that could not be decoded; None if not known.
    """

    dataset: str
    split: str
    metrics: Mapping[str, float]
    dataset_id: str | None = None
    condition: str | None = None
    views: int | None = None
    seeds: tuple[int, ...] | None = None
    num_clips: int | None = None
    skipped_clips: int | None = None

    def __post_init__(self) -> None:
        for name in ("dataset", "split"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"an evaluation needs its {name}, got {getattr(self, name)!r}")
        for name, value in self.metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(
                    f"{self.dataset}, {self.split}: {name}={value!r} is not a finite number: leave this metric out"
                )


@dataclass(frozen=True)
class CardDetails:
    """Facts that the author of a checkpoint provides for its card. All are optional; the card says if one is not stated.

    Args:
        title: heading; default: the name of the repository.
        license: licence of the weights in the Hub's spelling ("apache-2.0", "cc-by-4.0", "other").
        training_data: a sentence that describes the training data.
        datasets: Hub ids of the training datasets.
        recipe: setting -> value.
        label_source: source of the label names.
        evaluation: measured results.
        base_model: Hub id of the checkpoint that training started from.
        limits: one or more sentences, in addition to the limits of the architecture.
    """

    title: str | None = None
    license: str | None = None
    training_data: str | None = None
    datasets: Sequence[str] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    label_source: str | None = None
    evaluation: Sequence[Evaluation] = ()
    base_model: str | None = None
    limits: str | None = None


def build_card(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    details: CardDetails,
    repo_id: str,
    saved: Any = None,
) -> ModelCard:
    """Builds the card of a checkpoint from `model_cards/template.md`.

    Args:
        model: the model, or the base model of an adapter.
        processor: its processor; the table of inputs is read from it.
        details: facts that the model and the processor do not hold.
        repo_id: the name that the card's code example loads.
        saved: the `peft.PeftModel` if an adapter is saved instead of the model.
    """
    config = model.config
    adapter = saved is not None and saved is not model
    task = task_of(model)
    has_pipeline = task is not None and task.pipeline is not None
    sections = architecture_sections(config.model_type)
    title = details.title or repo_id.rstrip("/").rpartition("/")[2]
    base_model = details.base_model
    if adapter and base_model is None:
        base_model = next(iter(saved.peft_config.values())).base_model_name_or_path
    results = [result for evaluation in details.evaluation for result in _eval_results(evaluation, task)]
    data = ModelCardData(
        license=details.license,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task.hub_task if task is not None else None,
        tags=["hf_avfusion", config.model_type, "audio-visual"],
        datasets=list(details.datasets) or None,
        # The Hub links to this id; a local folder has no page.
        base_model=base_model if base_model and not Path(base_model).is_dir() else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=(CARDS / "template.md").read_text(encoding="utf-8"),
        title=title,
        introduction=sections.get("", f"A model of the architecture `{config.model_type}`."),
        usage=_usage(type(model).__name__, repo_id, task if has_pipeline else None, adapter, base_model),
        requirements=REQUIREMENTS + " peft" * adapter,
        pipeline=has_pipeline and not adapter,
        adapter=adapter,
        inputs=_inputs(processor),
        labels=task.describe_labels(config, details.label_source)
        if task is not None
        else "This checkpoint has no labels.",
        training_data=details.training_data or "not stated.",
        recipe=[(markdown_cell(name), markdown_cell(value)) for name, value in details.recipe.items()],
        evaluation=[row for evaluation in details.evaluation for row in _rows(evaluation)],
        limits="\n\n".join(
            text for text in (details.limits, sections.get("Limits") or sections.get("Different, and why")) if text
        )
        or "Not stated.",
        licence=(f"Weights: {details.license}. " if details.license else "The licence of the weights is not stated. ")
        + f"Code: {LICENCE_OF_CODE}.",
        citation=_citation(sections.get("Licence and citation", "")),
    )
    card.content = card.content.rstrip() + "\n"
    return card


def architecture_sections(model_type: str) -> dict[str, str]:
    """Heading -> text of the architecture's card in `model_cards/`, with "" for the introduction; {} without a card."""
    path = CARDS / f"{model_type}.md"
    if not path.is_file():
        return {}
    title, *parts = re.split(r"^## +(.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sections = {heading.strip(): text.strip() for heading, text in zip(parts[::2], parts[1::2])}
    prose = re.sub(r"^```.*?^```$", "", title.partition("\n")[2], flags=re.MULTILINE | re.DOTALL)
    sections[""] = re.sub(r"\n{3,}", "\n\n", re.sub(r"^`AutoModel`.*$", "", prose, flags=re.MULTILINE)).strip()
    return sections


def read_results(
    path: str | Path, dataset: str | None = None, split: str | None = None, checkpoint: str | Path | None = None
) -> list[Evaluation]:
    """Reads evaluations from a JSON file. Times, losses and undefined values (null) are left out.

    Args:
        path: one of
            - `results.json` of examples/evaluate.py: {"benchmark": {"title", "split"}, "evaluations": [{"checkpoint", "given",
              "views", "seed", "clips", "metrics"}, ...]};
            - an object {"dataset": "SoundingShapes", "split": "test", "metrics": {"top1": 0.91}, "views": 4, "seeds": [0],
              "num_clips": 480}, or a list of such objects;
            - the metrics of a Trainer (`test_results.json`: {"eval_top1": 0.91, "eval_clips": 480}).
        dataset, split: names, if the file does not hold them. The default split of a Trainer's file is read from its name.
        checkpoint: selects the evaluations of one checkpoint in a results.json by its name or path; may be left out if there
            is only one.

    Raises:
        ValueError: the file has none of these formats, or does not name the dataset, the split or a metric.
    """
    path = Path(path)
    content = read_json(path)
    try:
        if isinstance(content, dict) and "evaluations" in content:
            return _of_checkpoint(content, checkpoint)
        entries = content if isinstance(content, list) else [content]
        if not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("it holds no results: pass a file with a JSON object or a list of objects")
        default_split = split or path.name.removesuffix(".json").removesuffix("_results")
        return [_of_entry(entry, dataset, split, default_split) for entry in entries]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is in none of the formats of results (see read_results): {type(error).__name__} {error}"
        ) from error


def _of_checkpoint(content: dict[str, Any], checkpoint: str | Path | None) -> list[Evaluation]:
    evaluated = list(dict.fromkeys(each["checkpoint"] for each in content["evaluations"]))
    wanted = evaluated if checkpoint is None else [str(checkpoint)]
    chosen = [
        name for name in evaluated if any(name == w or os.path.realpath(name) == os.path.realpath(w) for w in wanted)
    ]
    if len(chosen) != 1:
        raise ValueError(
            f"it holds evaluations of {', '.join(evaluated) or 'nothing'}: pass one of these names as checkpoint= "
            "(--results_checkpoint)" + ("" if checkpoint is None else f", got {checkpoint}")
        )
    about, results = content["benchmark"], []
    for each in content["evaluations"]:
        if each["checkpoint"] != chosen[0]:
            continue
        condition = [{"av": "", "a": "audio only", "v": "video only"}[each["given"]]]
        if each.get("sampling", "spread") != "spread":
            condition.append(f"random windows ({each['sampling']}), span {each['span']:g} s")
        if each.get("crops", 1) != 1:
            condition.append(f"{each['crops']} crops per view")
        results.append(
            Evaluation(
                dataset=about["title"] or about["name"],
                split=about["split"],
                metrics=_measured(each["metrics"]),
                condition=", ".join(filter(None, condition)) or None,
                views=each["views"],
                seeds=(each["seed"],),
                num_clips=each["clips"],
                skipped_clips=each["skipped"],
            )
        )
    return results


def _of_entry(entry: dict[str, Any], dataset: str | None, split: str | None, default_split: str) -> Evaluation:
    if "metrics" in entry:
        seeds = entry.get("seeds")
        return Evaluation(
            entry.get("dataset") or _required(dataset),
            entry.get("split") or _required(split, "split"),
            _measured(entry["metrics"]),
            entry.get("dataset_id"),
            entry.get("condition"),
            entry.get("views"),
            None if seeds is None else tuple(seeds),
            entry.get("num_clips"),
            entry.get("skipped_clips"),
        )
    values = {name.removeprefix("eval_"): value for name, value in entry.items()}
    counts = {"num_clips": values.pop("clips", None), "skipped_clips": values.pop("skipped_clips", None)}
    return Evaluation(_required(dataset), default_split, _measured(values), **counts)


def _required(value: str | None, what: str = "dataset") -> str:
    if not value:
        raise ValueError(f"it does not name the {what} of the results: pass {what}=")
    return value


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    measured = {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not _NON_METRICS.search(name)
    }
    if not measured:
        raise ValueError("it holds no metric: pass a file with at least one number that is neither a time nor a loss")
    return measured


def read_recipe(path: str | Path) -> dict[str, str]:
    """Reads the training settings for the card from a JSON file.

    Args:
        path: the `recipe.json` that a training run writes next to its model, or an object {setting: value}.

    Raises:
        ValueError: the file holds no JSON object.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no settings: pass a file with a JSON object {{setting: value}}")
    if "overridden" not in record or "settings" not in record:
        return {str(name): str(value) for name, value in record.items()}
    lines = {"recipe": record.get("recipe") or "none", "source": record.get("source"), "start": record.get("start")}
    for name, values in record["overridden"].items():
        lines[name] = f"{values['run']} (the recipe has {values['recipe']})"
    for resumed in record.get("resumed", []):
        if resumed["changed"] != {}:
            lines[f"from {resumed['checkpoint']} on"] = changes(resumed)
    training = record["settings"].get("training", {})
    for name in (
        "optim",
        "optimizer",
        "learning_rate",
        "weight_decay",
        "schedule",
        "num_train_epochs",
        "max_steps",
        "seed",
    ):
        if name in training and f"training.{name}" not in lines:
            lines[name] = training[name]
    if "batch" in record:
        lines["clips per step"] = record["batch"].get("global")
    return {name: str(value) for name, value in lines.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------------- parts


def _usage(class_name: str, repo_id: str, task: Task | None, adapter: bool, base_model: str | None) -> str:
    name = json.dumps(repo_id)
    if adapter:
        auto = (task or DEFAULT_TASK).auto_class.__name__
        text = ', text="How many instruments are sounding?"' if task is not None and task.takes_text else ""
        return (
            "import hf_avfusion  # makes its models and adapters known to transformers and peft\n"
            "from peft import PeftModel\nfrom transformers import AutoProcessor\n\n"
            f"model = hf_avfusion.{auto}.from_pretrained({json.dumps(base_model)})\n"
            f"model = PeftModel.from_pretrained(model, {name})\n"
            f"processor = AutoProcessor.from_pretrained({name})\n"
            f'print(model(**processor(videos="clip.mp4"{text}, return_tensors="pt")).logits)'
        )
    if task is not None:
        call = task.pipeline.call
        function = call.partition("(")[0]
        return (
            "from transformers import pipeline\n\n"
            f"{function} = pipeline({json.dumps(task.pipeline.name)}, model={name}, trust_remote_code=True)\n"
            f"answer = {call}\nprint(answer)"
        )
    return (
        "from transformers import AutoModel, AutoProcessor\n\n"
        f"processor = AutoProcessor.from_pretrained({name}, trust_remote_code=True)\n"
        f"model = AutoModel.from_pretrained({name}, trust_remote_code=True)  # the base of {class_name}\n"
        'outputs = model(**processor(videos="clip.mp4", return_tensors="pt"))'
    )


def _inputs(processor: ProcessorMixin) -> list[tuple[str, str]]:
    words, video, audio = processor.window_policy.describe(), processor.video_processor, processor.feature_extractor
    steps = []
    if video.do_resize:
        steps.append(f"resized to {_size(video.size)}")
    if video.do_center_crop:
        steps.append(f"centre crop {_size(video.crop_size)}")
    if video.do_normalize:
        steps.append(f"[0, 1] normalised with mean {list(video.image_mean)} and deviation {list(video.image_std)}")
    milliseconds = 1000 / audio.sampling_rate
    rows = f", {audio.spectrogram_length} rows" if audio.spectrogram_length else ""
    return [
        ("`pixel_values`", f"{words['frames']}; {', '.join(steps)}"),
        (
            "`input_features`",
            f"{words['audio']}, {audio.sampling_rate} Hz mono ({processor.channel_mix} of the channels); "
            f"window {audio.win_length * milliseconds:g} ms, hop {audio.hop_length * milliseconds:g} ms, FFT {audio.n_fft}, "
            f"{audio.num_mel_bins} mel bands{rows}; mean {audio.mean:g}, deviation {audio.std * audio.divisor:g}",
        ),
        *([_vggish_input(processor)] if getattr(processor, "vggish", False) else []),
        ("short clips", words["short clips"]),
        *([] if getattr(processor, "vocab", None) is None else [_question_input(processor)]),
    ]


def _vggish_input(processor: ProcessorMixin) -> tuple[str, str]:
    front_end = vggish_front_end()
    return (
        "`vggish_features`",
        f"the first {seconds_of_examples(1)} s of each segment, {front_end.sampling_rate} Hz mono, through VGGish's published "
        f"front end: {EXAMPLE_ROWS} rows, {front_end.num_mel_bins} mel bands",
    )


def _question_input(processor: ProcessorMixin) -> tuple[str, str]:
    words = ", ".join(f"`{markdown_cell(word)}`" for word in processor.vocab[1 : SHOWN_WORDS + 1])
    more = ", ..." if len(processor.vocab) > SHOWN_WORDS + 1 else ""
    return (
        "`input_ids`",
        f"questions of at most {processor.max_question_length} words, padded with 0, out of {len(processor.vocab) - 1} words (case "
        f"counts): {words}{more}",
    )


def _citation(text: str) -> str:
    found = re.search(r"^```bibtex$.*?^```$", text, flags=re.MULTILINE | re.DOTALL)
    return found.group(0) if found else text or "No citation is recorded for this architecture."


def _size(size: Any) -> str:
    sides = {name: value for name, value in dict(size).items() if value is not None}
    return f"{sides['height']} x {sides['width']}" if "height" in sides else f"short side {sides['shortest_edge']}"


def _rows(evaluation: Evaluation) -> list[list[str]]:
    def known(value: Any) -> str:
        return "not recorded" if value is None else str(value)

    clips = known(evaluation.num_clips)
    if evaluation.skipped_clips:
        clips += f" (and {evaluation.skipped_clips} that could not be decoded)"
    seeds = known(None if evaluation.seeds is None else ", ".join(map(str, evaluation.seeds)))
    about = [
        markdown_cell(evaluation.dataset),
        markdown_cell(evaluation.split),
        markdown_cell(evaluation.condition or "both modalities"),
    ]
    about += [known(evaluation.views), seeds, clips]
    return [[*about, markdown_cell(name), f"{value:.4g}"] for name, value in evaluation.metrics.items()]


def _eval_results(evaluation: Evaluation, task: Task | None) -> list[EvalResult]:
    task = task or DEFAULT_TASK
    known = {
        "condition": evaluation.condition,
        "views": evaluation.views,
        "seeds": None if evaluation.seeds is None else list(evaluation.seeds),
        "clips": evaluation.num_clips,
        "skipped_clips": evaluation.skipped_clips,
    }
    return [
        EvalResult(
            task_type=task.hub_task,
            task_name=task.title.capitalize(),
            dataset_type=evaluation.dataset_id or evaluation.dataset,
            dataset_name=evaluation.dataset,
            dataset_split=evaluation.split,
            metric_type=task.show_metric(name).hub or name,
            metric_name=f"{name} ({evaluation.condition})" if evaluation.condition else name,
            metric_value=value,
            metric_args={key: value for key, value in known.items() if value is not None} or None,
        )
        for name, value in evaluation.metrics.items()
    ]
