"""What LAVISH's adapters bring beside LoRA, the head alone and full fine-tuning, on SoundingShapes.

    python benchmarks/lavish_evidence.py --output runs/lavish_evidence                 # no download; repeat the command to resume
    python benchmarks/lavish_evidence.py --output runs/lavish_evidence --tasks sum --seeds 0

The situation is the paper's: an image model that has never heard a sound. No pretrained weights are downloaded. So a small backbone
first learns the *shape* from frames, without sound, and is frozen (a ViT, a Swin-V2 for masks, a VideoMAE for whole clips). Then
every arm trains the same steps on the same clips:

lavish     adapters between both streams (r 2, g 2, T 4), and the head
none       the same adapters without the cross-modal step
lora       LoRA (r 8) on all attention projections, and the head
head       the head alone
full       all weights

each with both tracks, with frames alone and with sound alone (`modalities` of the model). Tasks:

sum           heads shape, sound and (shape + sound) mod 4, for each sounding second. The head is linear, as the published one,
              but of one layer: on frozen streams it cannot add the two classes.
events        the pair of shape and sound, or silence, for each second (AVE's way)
masks         the mask of the sounding shape among two, for each second (AVSBench's way)
questions     templated questions about two shapes (MUSIC-AVQA's way), beside the most frequent training answer to each question
pair          the pair of shape and sound of a clip, with VideoMAE

and, on `sum`, ablations of the adapter: direction, latent tokens, reduction, initial latents. Test figures are of the last step;
nothing is selected. Times share the machine with whatever else runs on it.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lavish_scenes import CLASSES, CLIP_FRAMES, SECONDS, SIDE, Scenes, load_scenes, settings, vocabulary
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import (
    Swinv2Config,
    Swinv2ForImageClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_avfusion.data.synthetic.sounding_scenes import QUESTION_TYPES
from hf_avfusion.evaluation.costs import PeakMemory, count_parameters, in_own_process
from hf_avfusion.files import write_text
from hf_avfusion.metrics.segmentation import segmentation_scores
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification
from hf_avfusion.models.lavish.modeling_lavish_heads import LavishForQuestionAnswering, LavishForSegmentation
from hf_avfusion.training.optimization import warmup_cosine_schedule

ADAPTER = {"reduction": 2, "groups": 2, "num_tokens": 4}
ARMS = ("lavish", "none", "lora", "head", "full")
RATES = {"lavish": 3e-3, "none": 3e-3, "lora": 3e-3, "head": 1e-2, "full": 1e-3}  # of Adam
TRACKS = {"both": ("video", "audio"), "frames": ("video",), "sound": ("audio",)}
SIZES = {
    "image_size": SIDE,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
LORA = r".*backbone.*\.(q_proj|k_proj|v_proj|query|key|value)"
ABLATIONS: dict[str, dict[str, Any]] = {
    "direction audio to video": {"direction": "audio_to_video"},
    "direction video to audio": {"direction": "video_to_audio"},
    "latents zero": {"token_init": "zeros"},
    **{f"T {count}": {"num_tokens": count} for count in (1, 2, 8, 16)},
    **{f"r {reduction}": {"reduction": reduction} for reduction in (4, 8)},
}
Batch = dict[str, Tensor]


# ---------------------------------------------------------------------------------------------------------- backbones


def build_backbone(kind: str) -> nn.Module:
    """A classifier of shapes, of transformers."""
    if kind == "vit":
        return ViTForImageClassification(ViTConfig(**SIZES, patch_size=8, num_labels=CLASSES))
    if kind == "videomae":
        config = VideoMAEConfig(**SIZES, patch_size=8, num_frames=CLIP_FRAMES, num_labels=CLASSES)
        return VideoMAEForVideoClassification(config)
    config = Swinv2Config(
        image_size=SIDE, patch_size=4, embed_dim=32, depths=[1, 1, 2, 1], num_heads=[2, 2, 4, 8], window_size=4,
        num_labels=CLASSES,
    )  # fmt: skip
    return Swinv2ForImageClassification(config)


def train_backbone(kind: str, scenes: Scenes, options: argparse.Namespace, folder: Path) -> None:
    """Learns the shape from frames and saves the model."""
    set_seed(0)
    model, clips = build_backbone(kind), kind == "videomae"
    values = scenes.tensors["clip_values"] if clips else scenes.tensors["pixel_values"].flatten(0, 1)
    labels = scenes.tensors["shape"] if clips else scenes.tensors["shape"].repeat_interleave(SECONDS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = warmup_cosine_schedule(optimizer, options.base_steps / 20, options.base_steps)
    held_out = len(values) // 10
    for rows in batches(len(values) - held_out, options.base_steps, 32, seed=0):
        model.train()(pixel_values=values[rows], labels=labels[rows]).loss.backward()
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    with torch.no_grad():
        logits = model.eval()(pixel_values=values[-held_out:]).logits
    print(
        f"{kind}: shape of {held_out} held-out samples {(logits.argmax(-1) == labels[-held_out:]).float().mean():.1%}"
    )
    model.save_pretrained(folder)


def batches(count: int, steps: int, size: int, seed: int) -> list[Tensor]:
    """Row numbers of every step: epochs in random orders, joined."""
    generator, order = torch.Generator().manual_seed(seed), []
    while sum(map(len, order)) < steps * size:
        order.append(torch.randperm(count, generator=generator))
    return list(torch.cat(order)[: steps * size].split(size))


# --------------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """One task: the model's class and fields, the samples of scenes, and the metrics of test logits in order of importance."""

    backbone: str
    head: type
    fields: dict[str, Any]
    samples: Callable[[Scenes], Batch]
    metrics: Callable[[Tensor, Batch], dict[str, float]]
    head_modules: tuple[str, ...]
    distractors: int = 0
    tracks: tuple[str, ...] = tuple(TRACKS)


def per_second(scenes: Scenes) -> Batch:
    """Single seconds in which the shape sounds."""
    tensors = scenes.tensors
    sounding = (tensors["events"] < CLASSES**2).flatten()
    shape, sound = (tensors[name].repeat_interleave(SECONDS) for name in ("shape", "sound"))
    labels = torch.stack([shape, sound, (shape + sound) % CLASSES], dim=1)
    values = {"pixel_values": tensors["pixel_values"].flatten(0, 1).unsqueeze(1), "labels": labels}
    values["input_features"] = tensors["input_features"].flatten(0, 1)
    return {name: value[sounding] for name, value in values.items()}


def clips(label: Callable[[dict[str, Tensor]], Tensor], *more: str, whole: bool = False) -> Callable[[Scenes], Batch]:
    """Whole clips with a label; `more` are names of further inputs."""

    def samples(scenes: Scenes) -> Batch:
        names = ("clip_values", "clip_features") if whole else ("pixel_values", "input_features")
        values = {name: scenes.tensors[source] for name, source in zip(("pixel_values", "input_features"), names)}
        return {**values, "labels": label(scenes.tensors), **{name: scenes.tensors[name] for name in more}}

    return samples


def head_metrics(logits: Tensor, batch: Batch) -> dict[str, float]:
    hits = torch.stack([part.argmax(-1) for part in logits.split(CLASSES, dim=-1)], dim=1) == batch["labels"]
    return {name: hits[:, head].float().mean().item() for head, name in ((2, "sum"), (0, "shape"), (1, "sound"))}


def class_metrics(logits: Tensor, batch: Batch) -> dict[str, float]:
    return {"accuracy": (logits.argmax(-1) == batch["labels"]).float().mean().item()}


def mask_metrics(logits: Tensor, batch: Batch) -> dict[str, float]:
    scores = segmentation_scores(logits.numpy(), batch["labels"].numpy())
    return {"mIoU": scores.miou, "F": scores.f_score}


def answer_metrics(logits: Tensor, batch: Batch) -> dict[str, float]:
    hits = logits.argmax(-1) == batch["labels"]
    kinds = {name: batch["question_type"] == number for number, name in enumerate(QUESTION_TYPES)}
    return {
        "accuracy": hits.float().mean().item(),
        **{name: hits[rows].float().mean().item() for name, rows in kinds.items()},
    }


SECOND = {"spectrogram_length": SIDE, "num_mel_bins": SIDE}
CLASSIFIER = {"head": LavishForAudioVisualClassification, "head_modules": ("pre_classifier", "classifier")}
TASKS: dict[str, Task] = {
    "sum": Task(
        "vit", samples=per_second, metrics=head_metrics, **CLASSIFIER,
        fields={
            **SECOND, "num_segments": None, "classifier_hidden_size": None,
            "class_splits": dict.fromkeys(("shape", "sound", "sum"), CLASSES),
        },
    ),
    "events": Task(
        "vit", samples=clips(lambda tensors: tensors["events"]), metrics=class_metrics, **CLASSIFIER,
        fields={**SECOND, "num_segments": SECONDS, "num_labels": CLASSES**2 + 1},
    ),
    "masks": Task(
        "swinv2", LavishForSegmentation, samples=clips(lambda tensors: tensors["masks"].long()), metrics=mask_metrics,
        fields={**SECOND, "num_segments": SECONDS, "mask_size": SIDE, "decoder_width": 32, "decoder_head_widths": (16, 8)},
        head_modules=("decoder",), distractors=1, tracks=("both", "frames"),
    ),
    "questions": Task(
        "vit", LavishForQuestionAnswering, samples=clips(lambda tensors: tensors["answer"], "input_ids", "question_type"),
        metrics=answer_metrics, head_modules=("head",), distractors=1,
        fields={**SECOND, "num_segments": SECONDS, "question_hidden_size": 64, "match_loss_weight": 0.0},
    ),
    "pair": Task(
        "videomae", samples=clips(lambda tensors: tensors["shape"] * CLASSES + tensors["sound"], whole=True),
        metrics=class_metrics, **CLASSIFIER,
        fields={"spectrogram_length": 2 * SIDE, "num_mel_bins": SIDE, "num_segments": None, "num_labels": CLASSES**2},
    ),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    task: str
    arm: str
    tracks: str
    seed: int
    ablation: str = ""

    @property
    def name(self) -> str:
        parts = (self.task, self.arm, self.tracks, self.ablation, str(self.seed))
        return "-".join(part.replace(" ", "_") for part in parts if part)


def build_model(run: Run, base: Path) -> nn.Module:
    task, fields = TASKS[run.task], dict(TASKS[run.task].fields)
    if run.task == "questions":
        fields |= {
            "vocab_size": len(vocabulary(task.distractors)),
            "num_labels": len(settings(task.distractors).answer_names),
        }
    adapter = None
    if run.arm in ("lavish", "none"):
        adapter = {**ADAPTER, "direction": "both" if run.arm == "lavish" else "none", **ABLATIONS.get(run.ablation, {})}
    model = task.head.from_backbone(
        str(base), modalities=TRACKS[run.tracks], adapter=adapter, use_stochastic_depth=False, **fields
    )
    if run.arm == "lora":
        heads = [name for name in task.head_modules if getattr(model, name, None) is not None]
        return get_peft_model(model, LoraConfig(r=8, target_modules=LORA, modules_to_save=heads))
    model.base_model.backbone.requires_grad_(run.arm == "full")
    return model


def take(batch: Batch, rows: Tensor | slice, tracks: str) -> Batch:
    """The rows of the inputs that the model takes, and their labels."""
    dropped = {
        "question_type",
        *({"input_features"} if tracks == "frames" else {"pixel_values"} if tracks == "sound" else ()),
    }
    return {name: value[rows] for name, value in batch.items() if name not in dropped}


def train(run: Run, scenes: dict[str, Scenes], base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and tests one run."""
    set_seed(run.seed)
    task, model = TASKS[run.task], build_model(run, base)
    trained, tested = (task.samples(scenes[split]) for split in ("train", "test"))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=RATES[run.arm])
    schedule = warmup_cosine_schedule(optimizer, options.steps / 20, options.steps)
    size, baseline, start = options.batch_size, PeakMemory.now("cpu"), time.perf_counter()
    with PeakMemory("cpu", baseline) as memory:
        for rows in batches(len(trained["labels"]), options.steps, size, run.seed):
            model.train()(**take(trained, rows, run.tracks)).loss.backward()
            optimizer.step(), schedule.step(), optimizer.zero_grad()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        parts = [
            model(
                **{
                    name: value
                    for name, value in take(tested, slice(at, at + 64), run.tracks).items()
                    if name != "labels"
                }
            )
            for at in range(0, len(tested["labels"]), 64)
        ]
    total, trainable = count_parameters(model)
    return {
        "metrics": task.metrics(torch.cat([part.logits for part in parts]), tested),
        "trainable": trainable,
        "total": total,
        "samples_per_s": options.steps * size / seconds,
        "peak_mib": memory.mib,
    }


def runs_of(options: argparse.Namespace) -> list[Run]:
    runs = []
    for seed in options.seeds:
        for name in options.tasks:
            runs += [
                Run(name, arm, tracks, seed)
                for tracks in TASKS[name].tracks
                for arm in ARMS
                if tracks in options.tracks and (tracks == "both" or arm != "none")
            ]
        if options.ablations:
            runs += [Run("sum", "lavish", "both", seed, ablation) for ablation in ABLATIONS]
    return runs


# -------------------------------------------------------------------------------------------------------------- tables


def spread(values: list[float], scale: float = 100.0) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.1f} +- {scale * deviation:.1f}"


def print_tables(results: dict[Run, dict[str, Any]], console: Console) -> None:
    for task in dict.fromkeys(run.task for run in results):
        for ablations in (False, True):
            chosen = {
                run: value for run, value in results.items() if run.task == task and bool(run.ablation) == ablations
            }
            if not chosen:
                continue
            names = list(next(iter(chosen.values()))["metrics"])
            table = Table(title=f"{task}{', ablations of lavish' if ablations else ''}, test, %")
            columns = ["arm", "tracks", "seeds", *names, "trainable", "total", "samples/s", "peak MiB"]
            for column in columns:
                table.add_column(column)
            groups: dict[tuple, list] = {}
            for run, value in chosen.items():
                groups.setdefault((run.ablation or run.arm, run.tracks), []).append(value)
            for (arm, tracks), values in groups.items():
                peaks = [value["peak_mib"] for value in values if value["peak_mib"] is not None]
                table.add_row(
                    arm, tracks, str(len(values)), *(spread([value["metrics"][name] for value in values]) for name in names),
                    f"{values[0]['trainable']:,}", f"{values[0]['total']:,}",
                    f"{statistics.median(value['samples_per_s'] for value in values):.0f}",
                    f"{statistics.median(peaks):.0f}" if peaks else "unknown",
                )  # fmt: skip
            console.print(table)


def question_prior(scenes: dict[str, Scenes]) -> dict[str, float]:
    """Metrics of answers from the question alone: the most frequent training answer to it, or to all questions."""
    trained, tested = (scenes[split].tensors for split in ("train", "test"))
    answers: dict[tuple, Counter] = {}
    for question, answer in zip(trained["input_ids"].tolist(), trained["answer"].tolist()):
        answers.setdefault(tuple(question), Counter())[answer] += 1
    usual = Counter(trained["answer"].tolist())
    logits = torch.zeros(len(tested["answer"]), int(trained["answer"].max()) + 1)
    for row, question in enumerate(tested["input_ids"].tolist()):
        logits[row, answers.get(tuple(question), usual).most_common(1)[0][0]] = 1.0
    return answer_metrics(logits, {"labels": tested["answer"], "question_type": tested["question_type"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path("runs/lavish_evidence"), help="scenes, backbones, finished runs"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--tracks", nargs="+", choices=TRACKS, default=list(TRACKS), help="given to the models")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--ablations", action=argparse.BooleanOptionalAction, default=True, help="of the adapter, on `sum`"
    )
    parser.add_argument("--clips", type=int, default=1600, help="training clips")
    parser.add_argument("--test_clips", type=int, default=400)
    parser.add_argument("--base_steps", type=int, default=700, help="steps of the backbone")
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--batch_size", type=int, default=32, help="seconds (`sum`) or clips")
    options = parser.parse_args()
    torch.set_num_threads(1)  # runs are forked
    console = Console(width=150)

    scenes = {}
    for distractors in sorted({TASKS[name].distractors for name in options.tasks}):
        counts = {"train": options.clips, "test": options.test_clips}
        scenes[distractors] = {
            split: load_scenes(options.output / "scenes", split, count, distractors) for split, count in counts.items()
        }
    for kind in dict.fromkeys(TASKS[name].backbone for name in options.tasks):
        folder = options.output / f"base-{kind}-{options.base_steps}"
        if not (folder / "config.json").exists():
            shapes = load_scenes(options.output / "scenes", "base", 1200, 0)
            in_own_process(train_backbone, kind, shapes, options, folder)
    results = {}
    for run in runs_of(options):
        task = TASKS[run.task]
        path = options.output / "runs" / f"{run.name}-{options.clips}-{options.steps}-{options.batch_size}.json"
        if not path.exists():
            base = options.output / f"base-{task.backbone}-{options.base_steps}"
            result = in_own_process(train, run, scenes[task.distractors], base, options)
            write_text(path, json.dumps(result, indent=1))
            console.print(
                f"{run.name}: {', '.join(f'{name} {value:.1%}' for name, value in result['metrics'].items())}"
            )
        results[run] = json.loads(path.read_text())
    print_tables(results, console)
    if "questions" in options.tasks:
        prior = question_prior(scenes[TASKS["questions"].distractors])
        console.print(
            f"answers from the question alone: {', '.join(f'{name} {value:.1%}' for name, value in prior.items())}"
        )


if __name__ == "__main__":
    main()
