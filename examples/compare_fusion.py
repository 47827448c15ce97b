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
`--costs_only` measures the costs anew: of one view, in float32, with AdamW, however the runs are trained and evaluated. The
options of transformers' Trainer work too; those that would do nothing here are refused.
"""

import copy
import json
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import torch
from finetune_classification import Options as FineTuning
from rich import print
from rich.progress import track
from transformers import set_seed

from hf_avfusion.data import LabelBalance
from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.streaming.in_memory import cache_clips
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.comparison import Comparison, scores_of
from hf_avfusion.evaluation.costs import compare_costs
from hf_avfusion.evaluation.views import check_views, view_transform
from hf_avfusion.tasks import TASKS
from hf_avfusion.tasks.classification import ClassLabels
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building import build_collator, build_frame_augmentation, build_fresh, build_processor
from hf_avfusion.training.recipes.command_line import REFUSALS, parse_with_recipe, refuse
from hf_avfusion.training.recipes.variants import FUSIONS, variant_fields
from hf_avfusion.training.trainer import AVTrainer


@dataclass
class Options(FineTuning):
    fusions: list[str] | None = field(default=None, metadata={"help": "Variants to compare; all if not given."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run per variant and seed."})
    fusion_layer: int | None = field(
        default=None, metadata={"help": "First layer that fuses, where the variant leaves it open (or as published)."}
    )
    num_bottleneck_tokens: int | None = field(
        default=None, metadata={"help": "Bottleneck tokens, of variants with any (4)."}
    )
    decode_once: bool = field(
        default=False, metadata={"help": "Keep decoded clips in memory: windows stay as first drawn, no --augment."}
    )
    costs_only: bool = field(default=False, metadata={"help": "Measure the costs anew, train nothing."})
    cost_rounds: int = field(default=10, metadata={"help": "Rounds over all variants when times are measured."})


ADJUSTED = {"fusion_layer", "num_bottleneck_tokens"}  # flags that are fields of the configuration

# What may change between runs that are compared; all else is kept with a run and checked when it is found finished.
FREE = {
    "fusions", "seeds", "costs_only", "cost_rounds", *ADJUSTED,  # these are in its configuration
    "output_dir", "seed", "run_name", "report_to", "disable_tqdm", "logging_steps", "logging_strategy", "save_strategy",
    "save_steps", "per_device_eval_batch_size", "dataloader_num_workers", "dataloader_persistent_workers", "on_decode_failure",
}  # fmt: skip

# Flags that other scripts need; here they would have no effect.
REFUSED = {
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "every run trains and is then evaluated on --eval_split"),
    **dict.fromkeys(("resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
                    "the same command goes on after the last finished run"),
    **dict.fromkeys(("seed", "data_seed", "train_sampling_strategy", "length_column_name", "dataloader_in_order"),
                    "--seeds decides the order of clips, anew for every run"),
    "push_to_hub": "the result is the table; push_to_hub.py sends a model that finetune_classification.py trained",
    "num_segments": "no variants are known of a model that localises events; finetune_classification.py trains one",
}  # fmt: skip


def command_line() -> list[str]:
    """What was typed, after the words of the file that `--args_file` names."""
    args = sys.argv[1:]
    if "--args_file" not in args:
        return args
    place = args.index("--args_file")
    if place + 1 == len(args) or not Path(args[place + 1]).is_file():
        raise FileNotFoundError(f"{' '.join(args[place : place + 2])}: no such file")
    return [*Path(args[place + 1]).read_text().split(), *args[:place], *args[place + 2 :]]


def check_flags(run, options: Options) -> None:
    """Refuses variants that are not known, flags that contradict each other, and those without effect."""
    recipe, flags = run.recipe, run.flags
    if run.checkpoint is not None or recipe.architecture not in FUSIONS:
        raise ValueError(f"--model {run.checkpoint or recipe.architecture}: variants are known of {', '.join(FUSIONS)}")
    known = FUSIONS[recipe.architecture]
    if wrong := [fusion for fusion in options.fusions or known if fusion not in known]:
        raise ValueError(f"--fusions {' '.join(wrong)}: the variants of {recipe.architecture} are {', '.join(known)}")
    if idle := [name for name in flags if name in REFUSED]:
        raise ValueError(f"--{idle[0]}: {REFUSED[idle[0]]}; leave it out")
    if twice := {"fusion", "share_encoder", *(ADJUSTED & flags.keys())} & json.loads(flags.get("config", "{}")).keys():
        raise ValueError(f"--config: {', '.join(sorted(twice))} is what --fusions or a flag of that name decides")
    if options.decode_once and recipe.frame_augmentation is not None:
        raise ValueError("--decode_once keeps the frames as they are: give --augment False too")


def settings_of(recipe, options: Options, args: AVTrainingArguments) -> dict:
    """What all runs of a comparison have in common."""
    settings = {name: value for name, value in asdict(options).items() if name not in FREE}
    kept = {k: v for k, v in recipe.values().items() if k.partition(".")[0] not in ("model", "training")}
    settings |= {"recipe": kept, "start": [recipe.architecture, recipe.size, recipe.init]}
    default = AVTrainingArguments(output_dir=args.output_dir).to_dict()
    settings["training"] = {k: v for k, v in args.to_dict().items() if v != default[k] and k not in FREE}
    return settings


def make_model(recipe, head: dict, fields: dict, seed: int):
    set_seed(seed)
    return build_fresh(recipe.but(model=fields), head)[1]


def main() -> int:
    try:
        # Adds the flags of `RecipeOptions`: --recipe, --model, --num_frames, --set, ...; what is typed later counts.
        run, options, args = parse_with_recipe(Options, AVTrainingArguments, ["--save_strategy", "no", *command_line()])
        check_flags(run, options)
        recipe = run.recipe
        fusions = options.fusions or list(FUSIONS[recipe.architecture])
        where = {"source": options.source, "variant": options.variant}
        evaluated = load_rows(options.data, options.eval_split, flag="--eval_split", **where)
        rows = {"training": load_rows(options.data, "train", **where), "evaluation": evaluated}
        options.eval_split, trained = evaluated.split, rows["training"].rows
        columns = options.label_columns or [evaluated.record.label_columns[0] if evaluated.record else "label"]
        task, processor = TASKS["classification"], build_processor(recipe)
        head = task.config_fields(trained.features, columns, None)
        check_views(
            args.eval_views,
            task,
            SimpleNamespace(**head),
            ("--eval_num_views", "--eval_num_crops", "--eval_aggregation"),
        )
        labels = {"label_columns": columns, "num_labels": len(head["id2label"])}
        read = ClassLabels(columns, labels["num_labels"])
        augmentation = build_frame_augmentation(recipe, processor)
        transforms = {
            "training": ClipTransform(processor, read, mode="train", augmentation=augmentation),
            "evaluation": view_transform(processor, args.eval_views, read),
        }
        typed = {name: getattr(options, name) for name in ADJUSTED if name in run.flags}
        configs = {name: variant_fields(recipe.but(model=typed), name, head, processor) for name in fusions}
        settings = settings_of(recipe, options, args)
        comparison = Comparison(args.output_dir, settings)
        runs = {f: {s: r for s in options.seeds if (r := comparison.finished(f, s, configs[f]))} for f in fusions}
    except REFUSALS as error:
        return refuse(error)

    device = torch.cuda.get_device_name() if args.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    measured = {"device": device, "batch_size": args.per_device_train_batch_size, "rounds": options.cost_rounds}
    measured |= {"start": settings["start"], "recipe": settings["recipe"], "labels": labels, "configs": configs}
    broken = {"on_error": options.on_decode_failure}
    costs = None if options.costs_only else comparison.costs(measured)
    if costs is None:
        print(f"measuring the costs of {len(fusions)} variants, {options.cost_rounds} rounds in turn on {device}")
        clips = ClipStream(trained, transforms["training"], **broken)
        batch = lambda: AVCollator()(list(islice(clips, args.per_device_train_batch_size)))  # noqa: E731
        builders = {f: lambda f=f: make_model(recipe, head, configs[f], 0) for f in fusions}
        costs = compare_costs(builders, batch, device=args.device, rounds=options.cost_rounds)
        comparison.keep_costs(costs, measured)

    todo = [] if options.costs_only else [(s, f) for s in options.seeds for f in fusions if s not in runs[f]]
    streams = {name: ClipStream(x.rows, transforms[name], num_rows=x.num_rows, **broken) for name, x in rows.items()}
    for name, stream in streams.items() if options.decode_once and todo else ():
        progress = partial(track, description=f"decoding clips of {name}", total=stream.num_rows)
        streams[name] = cache_clips(stream, columns[:1], progress)
        if stream.skipped:
            print(f"[yellow]{stream.skipped} clips of {name} did not decode and are left out; see the log above.[/]")
    train, test = streams["training"], streams["evaluation"]
    balance = LabelBalance.of(train.rows, columns[0]) if options.balance_labels and todo else None
    for number, (seed, fusion) in enumerate(todo, start=1):
        print(f"\n[bold]run {number} of {len(todo)}: {fusion}, seed {seed}[/]")
        own = copy.copy(args)
        own.seed, own.output_dir = seed, str(comparison.folder / "training" / f"{fusion}-seed{seed}")
        order = {**broken, "shuffle_buffer": options.shuffle_buffer, "num_rows": train.num_rows, "balance": balance}
        clips = {"train_dataset": ClipStream(train.rows, train.transform, seed=seed, **order), "eval_dataset": test}
        model = make_model(recipe, head, configs[fusion], seed)
        collator = build_collator(recipe, model.config, seed=seed, modality_dropout=options.modality_dropout)
        trainer = AVTrainer(model, own, collator, processing_class=processor, **clips)
        trainer.train()
        runs[fusion][seed] = scores_of(trainer.evaluate())
        print("  ".join(f"{name} {value:.4g}" for name, value in runs[fusion][seed].items()))
        comparison.keep(fusion, seed, configs[fusion], runs[fusion][seed])
        comparison.report(runs, costs, measured)
    print(comparison.report(runs, costs, measured), f"also in {comparison.folder}: comparison.md, .csv and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
