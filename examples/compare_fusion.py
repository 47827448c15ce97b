"""Which way of fusing is best on your data? Trains the variants of an architecture alike, over several seeds, and prints
one table: mean and spread of every metric, parameters, FLOPs, clips per second and peak memory.

    # a benchmark by its name, or your own folder of videos, as in finetune_classification.py
    python examples/compare_fusion.py --data my_videos/ --size small --num_frames 8 --span 8 --num_train_epochs 10 \
        --output_dir runs/fusion

    # settings can stand in a file; what is typed besides goes before it; the published ones in a --recipe
    python examples/compare_fusion.py --args_file examples/compare_shapes.args --source shapes/ --output_dir runs/shapes

For one seed all variants see the same clips in the same order, under the same head; a seed decides the order and the
initial weights. A finished run is kept in OUTPUT_DIR/runs and not repeated: a stopped comparison goes on where it was,
and more `--seeds` or `--fusions` can be added. The table stands in OUTPUT_DIR/comparison.md, .csv and .json;
`--costs_only` measures the costs anew. Every option of transformers' Trainer works too.
"""

import copy
import sys
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from finetune_classification import Options as FineTuning
from finetune_classification import load_split
from rich import print
from rich.progress import track
from transformers import set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_avfusion.data.benchmarks import BENCHMARKS
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.heads import head_fields
from hf_avfusion.data.streaming import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.comparison import Comparison, scores_of
from hf_avfusion.evaluation.costs import compare_costs
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building import (
    build_collator,
    build_frame_augmentation,
    build_fresh,
    build_processor,
)
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.training.trainer import AVTrainer

LAST = "num_hidden_layers"
# What sets the variants of an architecture apart in its configuration.
FUSIONS = {
    "mbt": {
        "bottleneck": {"fusion": "bottleneck"},
        "bottleneck_shared": {"fusion": "bottleneck", "share_encoder": True},
        "self_attention": {"fusion": "self_attention"},
        "self_attention_shared": {"fusion": "self_attention", "share_encoder": True},
        "early": {"fusion": "self_attention", "share_encoder": True, "fusion_layer": 0},  # one encoder over all tokens
        "late": {"fusion": "bottleneck", "fusion_layer": LAST},  # the streams' logits are averaged
    },
}


@dataclass
class Options(FineTuning):
    fusions: list[str] | None = field(default=None, metadata={"help": "Variants to compare; all if not given."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run per variant and seed."})
    fusion_layer: int | None = field(
        default=None, metadata={"help": "First layer that fuses, where the variant leaves it open (or as published)."}
    )
    num_bottleneck_tokens: int | None = field(default=None, metadata={"help": "Bottleneck tokens (default: 4)."})
    decode_once: bool = field(
        default=False, metadata={"help": "Keep decoded clips in memory: windows stay as first drawn, no --augment."}
    )
    costs_only: bool = field(default=False, metadata={"help": "Measure the costs anew, train nothing."})
    cost_rounds: int = field(default=10, metadata={"help": "Rounds over all variants when times are measured."})


# What may change between runs that are compared; all else is kept with a run and checked when it is found finished.
FREE = {
    "fusions", "seeds", "costs_only", "cost_rounds", "fusion_layer", "num_bottleneck_tokens",  # the last two: in its config
    "output_dir", "seed", "run_name", "report_to", "disable_tqdm", "logging_steps", "logging_strategy", "save_strategy",
    "save_steps", "per_device_eval_batch_size", "dataloader_num_workers", "dataloader_persistent_workers",
}  # fmt: skip


def command_line() -> list[str]:
    """What was typed, after the words of the file that `--args_file` names."""
    args = sys.argv[1:]
    if "--args_file" not in args:
        return args
    place = args.index("--args_file")
    if place + 1 == len(args) or not Path(args[place + 1]).is_file():
        raise FileNotFoundError(f"--args_file {' '.join(args[place + 1 : place + 2])}: no such file")
    return [*Path(args[place + 1]).read_text().split(), *args[:place], *args[place + 2 :]]


def variant_fields(recipe, options: Options, fusion: str) -> dict:
    """The fields of the configuration that make the variant."""
    adjusted = {name: getattr(options, name) for name in ("fusion_layer", "num_bottleneck_tokens")}
    fields = {name: value for name, value in adjusted.items() if value is not None}
    fields |= FUSIONS[recipe.architecture][fusion]
    if fields.get("fusion_layer") == LAST:
        fields["fusion_layer"] = getattr(
            getattr(CONFIG_MAPPING[recipe.architecture], recipe.size)(**recipe.model), LAST
        )
    return fields


def make_model(recipe, head: dict, fields: dict, seed: int):
    set_seed(seed)
    return build_fresh(recipe.but(model=fields), head)[1]


def decoded(stream: ClipStream, name: str) -> ClipStream:
    """The same clips from memory, decoded once; sharing their tensors, each run shuffles and seeds them anew."""
    samples = list(track(stream, f"decoding {name}", total=stream.num_rows))
    if stream.skipped:
        print(f"[yellow]{stream.skipped} clips of {name} did not decode and are left out; the log above names them.[/]")
    return ClipStream(samples, lambda sample, generator: dict(sample))


def main() -> None:
    # Adds the flags of `RecipeOptions`: --recipe, --model, --num_frames, --set, ...; what is typed later counts.
    run, options, args = parse_with_recipe(Options, AVTrainingArguments, ["--save_strategy", "no", *command_line()])
    recipe = run.recipe
    if run.checkpoint is not None or recipe.architecture not in FUSIONS:
        raise ValueError(f"--model {run.checkpoint or recipe.architecture}: variants are known of {', '.join(FUSIONS)}")
    known = FUSIONS[recipe.architecture]
    fusions = options.fusions or list(known)
    if wrong := [fusion for fusion in fusions if fusion not in known]:
        raise ValueError(f"--fusions {' '.join(wrong)}: the variants of {recipe.architecture} are {', '.join(known)}")
    if options.decode_once and recipe.frame_augmentation is not None:
        raise ValueError("--decode_once keeps the frames as they are: give --augment False too")

    rows = {split: load_split(options, split) for split in ("train", options.eval_split)}
    usual = BENCHMARKS[options.data].label_columns[0] if options.data in BENCHMARKS else "label"
    columns = options.label_columns or [usual]
    head, processor = head_fields(rows["train"][0].features, columns), build_processor(recipe)
    labels = {"label_columns": columns, "num_labels": len(head["id2label"])}
    augmentation = build_frame_augmentation(recipe, processor)
    transforms = {options.eval_split: ClipTransform(processor, **labels)}
    transforms["train"] = ClipTransform(processor, mode="train", augmentation=augmentation, **labels)
    configs = {fusion: {**recipe.model, **variant_fields(recipe, options, fusion)} for fusion in fusions}

    settings = {name: value for name, value in asdict(options).items() if name not in FREE}
    settings["recipe"] = {
        name: v for name, v in recipe.values().items() if name.partition(".")[0] not in ("model", "training")
    }
    settings["start"] = [recipe.architecture, recipe.size, recipe.init]
    default = AVTrainingArguments(output_dir=args.output_dir).to_dict()
    settings["training"] = {k: v for k, v in args.to_dict().items() if v != default[k] and k not in FREE}
    comparison = Comparison(args.output_dir, settings)
    runs = {f: {s: r for s in options.seeds if (r := comparison.finished(f, s, configs[f]))} for f in fusions}

    device = torch.cuda.get_device_name() if args.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    measured = {"device": device, "batch_size": args.per_device_train_batch_size, "configs": configs}
    costs = None if options.costs_only else comparison.costs(measured)
    if costs is None:
        print(f"measuring the costs of {len(fusions)} variants, {options.cost_rounds} rounds in turn on {device}")
        clips = ClipStream(rows["train"][0], transforms["train"])
        batch = lambda: AVCollator()(list(islice(clips, args.per_device_train_batch_size)))  # noqa: E731
        builders = {f: lambda f=f: make_model(recipe, head, configs[f], 0) for f in fusions}
        costs = compare_costs(builders, batch, device=args.device, rounds=options.cost_rounds)
        comparison.keep_costs(costs, measured)

    wanted = [] if options.costs_only else [(seed, fusion) for seed in options.seeds for fusion in fusions]
    todo = [(seed, fusion) for seed, fusion in wanted if seed not in runs[fusion]]
    streams = {name: ClipStream(some, transforms[name], num_rows=count) for name, (some, count) in rows.items()}
    if options.decode_once and todo:
        streams = {name: decoded(stream, name) for name, stream in streams.items()}
    train, test = streams["train"], streams[options.eval_split]
    for number, (seed, fusion) in enumerate(todo, start=1):
        print(f"\n[bold]run {number} of {len(todo)}: {fusion}, seed {seed}[/]")
        own = copy.copy(args)
        own.seed, own.output_dir = seed, str(comparison.folder / "training" / f"{fusion}-seed{seed}")
        order = {"seed": seed, "shuffle_buffer": options.shuffle_buffer, "num_rows": train.num_rows}
        clips = {"train_dataset": ClipStream(train.rows, train.transform, **order), "eval_dataset": test}
        model = make_model(recipe, head, configs[fusion], seed)
        collator = build_collator(recipe, model.config, seed=seed, modality_dropout=options.modality_dropout)
        trainer = AVTrainer(model, own, collator, processing_class=processor, **clips)
        trainer.train()
        runs[fusion][seed] = scores_of(trainer.evaluate())
        print("  ".join(f"{name} {value:.4g}" for name, value in runs[fusion][seed].items()))
        comparison.keep(fusion, seed, configs[fusion], runs[fusion][seed])
        comparison.report(runs, costs, measured)
    print(comparison.report(runs, costs, measured), f"also in {comparison.folder}: comparison.md, .csv and .json")


if __name__ == "__main__":
    main()
