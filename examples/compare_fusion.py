"""Compares the fusion variants of an architecture on your data. Trains each variant with the same settings over several seeds
and prints one table: mean and standard deviation of every metric, parameters, FLOPs, clips per second and peak memory.

    # --data takes the name of a benchmark or your own folder of videos, as in finetune_classification.py
    python examples/compare_fusion.py --data my_videos/ --size small --num_frames 8 --span 8 --num_train_epochs 10 \
        --output_dir runs/fusion

    # settings from a file; flags on the command line override it; --recipe gives the published settings
    python examples/compare_fusion.py --args_file examples/compare_shapes.args --source shapes/ --output_dir runs/shapes

A seed decides the order of the clips and the initial weights. For one seed, all variants see the same clips in the same order
and have the same head. Finished runs are kept in OUTPUT_DIR/runs and are not repeated: the same command resumes a stopped
comparison, and you can add more `--seeds` or `--fusions`. The table is saved as OUTPUT_DIR/comparison.md, .csv and .json.

`--costs_only` only measures the costs again. Costs are always measured with one view, in float32 and with AdamW, however the
runs are trained and evaluated. The script also accepts the options of transformers' Trainer; options without effect here are
errors.
"""

import copy
import json
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

from hf_avfusion.arguments import check_at_least, check_one_of
from hf_avfusion.training.recipes.fusions import FUSIONS
from hf_avfusion.training.recipes.options import ClassificationOptions, check_arguments


@dataclass
class Options(ClassificationOptions):
    fusions: list[str] | None = field(default=None, metadata={"help": "Variants to compare; default: all."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds; each variant trains once per seed."}
    )
    fusion_layer: int | None = field(
        default=None, metadata={"help": "First fusion layer, for variants that do not fix it; default: as published."}
    )
    num_bottleneck_tokens: int | None = field(
        default=None, metadata={"help": "Number of bottleneck tokens, for variants that have them; default: 4."}
    )
    decode_once: bool = field(
        default=False,
        metadata={
            "help": "Decode each clip once and keep it in memory: its window is fixed, and --augment must be off."
        },
    )
    costs_only: bool = field(default=False, metadata={"help": "Only measure the costs again; train nothing."})
    cost_rounds: int = field(default=10, metadata={"help": "Rounds over all variants when measuring times."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, cost_rounds=self.cost_rounds)
        for fusion in self.fusions or ():  # of any architecture; `check_flags` knows which one
            check_one_of("--fusions", fusion, [name for variants in FUSIONS.values() for name in variants])
        if wrong := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise ValueError(f"--seeds {wrong[0]}: a seed is a whole number from 0 to {2**32 - 1:,}")
        if (self.eval_split or "").lower() == "none":
            raise ValueError("--eval_split none: every run is evaluated; leave it out or name a split")


def command_line() -> list[str]:
    """The arguments from the file that `--args_file` names, followed by those on the command line."""
    args = sys.argv[1:]
    if "--args_file" not in args:
        return args
    index = args.index("--args_file")
    if index + 1 == len(args) or not Path(args[index + 1]).is_file():
        raise FileNotFoundError(f"{' '.join(args[index : index + 2])}: no such file")
    return [*Path(args[index + 1]).read_text().split(), *args[:index], *args[index + 2 :]]


if __name__ == "__main__":
    check_arguments(Options, command_line)  # wrong arguments are answered before the imports below, which take seconds

import torch
from rich import print
from rich.progress import track
from transformers import set_seed

from hf_avfusion.data import LabelBalance
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.streaming.in_memory import cache_clips
from hf_avfusion.evaluation.comparison import Comparison, scores_of
from hf_avfusion.evaluation.costs import compare_costs
from hf_avfusion.evaluation.views import check_views, view_transform
from hf_avfusion.tasks import TASKS
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building import (
    build_collator,
    build_frame_augmentation,
    build_fresh,
    build_processor,
    default_config,
    reading_options,
)
from hf_avfusion.training.recipes.building_runs import RunData
from hf_avfusion.training.recipes.command_line import USER_ERRORS, exit_with_error, parse_with_recipe
from hf_avfusion.training.recipes.variants import variant_fields
from hf_avfusion.training.trainer import AVTrainer

CONFIG_FLAGS = {"fusion_layer", "num_bottleneck_tokens"}  # flags that are fields of the model's configuration

# Settings that may differ between compared runs. All others are saved with a finished run and must match to reuse it.
MAY_DIFFER = {
    "fusions", "seeds", "costs_only", "cost_rounds", *CONFIG_FLAGS,  # the run's configuration holds CONFIG_FLAGS
    "output_dir", "seed", "run_name", "report_to", "disable_tqdm", "logging_steps", "logging_strategy", "save_strategy",
    "save_steps", "per_device_eval_batch_size", "dataloader_num_workers", "dataloader_persistent_workers", "on_decode_failure",
}  # fmt: skip

# Flags of other scripts that have no effect here, with the reason.
NO_EFFECT = {
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "every run trains and is then evaluated on --eval_split"),
    **dict.fromkeys(("resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
                    "the same command continues after the last finished run"),
    **dict.fromkeys(("seed", "data_seed", "train_sampling_strategy", "length_column_name", "dataloader_in_order"),
                    "--seeds decides the order of clips of every run"),
    "push_to_hub": "the result is the table; push_to_hub.py pushes a model that finetune_classification.py trained",
    "num_segments": "event localisation models have no fusion variants; finetune_classification.py trains one",
}  # fmt: skip


def check_flags(run, options: Options) -> None:
    """Raises a ValueError for unknown variants, contradicting flags and flags without effect."""
    recipe, flags = run.recipe, run.flags
    if run.checkpoint is not None or recipe.architecture not in FUSIONS:
        raise ValueError(
            f"--model {run.checkpoint or recipe.architecture}: only these architectures have fusion variants:"
            f" {', '.join(FUSIONS)}"
        )
    known = FUSIONS[recipe.architecture]
    if wrong := [fusion for fusion in options.fusions or known if fusion not in known]:
        raise ValueError(f"--fusions {' '.join(wrong)}: the variants of {recipe.architecture} are {', '.join(known)}")
    if unused := [name for name in flags if name in NO_EFFECT]:
        raise ValueError(f"--{unused[0]}: {NO_EFFECT[unused[0]]}; leave it out")
    in_config = json.loads(flags.get("config", "{}")).keys()
    if twice := {"fusion", "share_encoder", *(CONFIG_FLAGS & flags.keys())} & in_config:
        raise ValueError(
            f"--config: --fusions or the flag of the same name already sets {', '.join(sorted(twice))}; leave it out of"
            " --config"
        )
    if options.decode_once and recipe.frame_augmentation is not None:
        raise ValueError("--decode_once does not allow frame augmentation: add --augment False")


def shared_settings(recipe, options: Options, args: AVTrainingArguments) -> dict:
    """The settings that all runs of a comparison share."""
    settings = {name: value for name, value in asdict(options).items() if name not in MAY_DIFFER}
    kept = {k: v for k, v in recipe.values().items() if k.partition(".")[0] not in ("model", "training")}
    settings |= {"recipe": kept, "start": [recipe.architecture, recipe.size, recipe.init]}
    default = AVTrainingArguments(output_dir=args.output_dir).to_dict()
    settings["training"] = {k: v for k, v in args.to_dict().items() if v != default[k] and k not in MAY_DIFFER}
    return settings


def make_model(recipe, head: dict, fields: dict, seed: int):
    set_seed(seed)
    return build_fresh(recipe.replace(model=fields), head)[1]


def main() -> int:
    try:
        # Adds the flags of `RecipeOptions`: --recipe, --model, --num_frames, --set, ...; later arguments override earlier.
        run, options, args = parse_with_recipe(Options, AVTrainingArguments, ["--save_strategy", "no", *command_line()])
        check_flags(run, options)
        recipe = run.recipe
        fusions = options.fusions or list(FUSIONS[recipe.architecture])
        data = RunData.load(options, args)
        rows, trained = {"training": data.trained, "evaluation": data.evaluated}, data.trained.rows
        if data.validation is not None:
            rows["validation"] = data.validation
        columns = options.label_columns or [data.trained.record.label_columns[0] if data.trained.record else "label"]
        task, processor = TASKS[recipe.task], build_processor(recipe)
        head = task.config_fields(trained.features, columns, None)
        check_views(
            args.eval_views,
            task,
            SimpleNamespace(**head),
            ("--eval_num_views", "--eval_num_crops", "--eval_aggregation"),
        )
        labels = {"label_columns": columns, "num_labels": len(head["id2label"])}
        config = default_config(recipe, recipe.model)  # the variants share its modalities and axes
        read = reading_options(task.read_labels(columns, head), config, allow_urls=options.allow_urls)
        augmentation = build_frame_augmentation(recipe, processor)
        transforms = {
            "training": task.transform_class(processor, mode="train", augmentation=augmentation, **read),
            "evaluation": view_transform(processor, args.eval_views, transform_class=task.transform_class, **read),
        }
        transforms["validation"] = transforms["evaluation"]
        changes = {name: getattr(options, name) for name in CONFIG_FLAGS if name in run.flags}
        configs = {name: variant_fields(recipe.replace(model=changes), name, head, processor) for name in fusions}
        settings = shared_settings(recipe, options, args)
        comparison = Comparison(args.output_dir, settings)
        runs = {f: {s: r for s in options.seeds if (r := comparison.finished(f, s, configs[f]))} for f in fusions}
    except USER_ERRORS as error:
        return exit_with_error(error)

    device = torch.cuda.get_device_name() if args.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    measured = {"device": device, "batch_size": args.per_device_train_batch_size, "rounds": options.cost_rounds}
    measured |= {"start": settings["start"], "recipe": settings["recipe"], "labels": labels, "configs": configs}
    failures = {"on_error": options.on_decode_failure}
    costs = None if options.costs_only else comparison.costs(measured)
    if costs is None:
        print(f"measuring the costs of {len(fusions)} variants in {options.cost_rounds} rounds on {device}")
        clips = ClipStream(trained, transforms["training"], **failures)
        collate = task.collator_class.for_model(getattr(type(config), recipe.size)(**head))
        batch = lambda: collate(list(islice(clips, args.per_device_train_batch_size)))  # noqa: E731
        builders = {f: lambda f=f: make_model(recipe, head, configs[f], 0) for f in fusions}
        costs = compare_costs(builders, batch, device=args.device, rounds=options.cost_rounds)
        comparison.keep_costs(costs, measured)

    todo = [] if options.costs_only else [(s, f) for s in options.seeds for f in fusions if s not in runs[f]]
    streams = {name: ClipStream(x.rows, transforms[name], num_rows=x.num_rows, **failures) for name, x in rows.items()}
    for name, stream in streams.items() if options.decode_once and todo else ():
        progress = partial(track, description=f"decoding the {name} clips", total=stream.num_rows)
        streams[name] = cache_clips(stream, columns[:1], progress)
        if stream.skipped:
            print(f"[yellow]skipped {stream.skipped} {name} clips that could not be decoded; see the log above[/]")
    train, test = streams["training"], streams["evaluation"]
    balance = LabelBalance.of(train.rows, columns[0]) if options.balance_labels and todo else None
    for number, (seed, fusion) in enumerate(todo, start=1):
        print(f"\n[bold]run {number} of {len(todo)}: {fusion}, seed {seed}[/]")
        run_args = copy.copy(args)
        run_args.seed, run_args.output_dir = seed, str(comparison.folder / "training" / f"{fusion}-seed{seed}")
        order = {**failures, "shuffle_buffer": options.shuffle_buffer, "num_rows": train.num_rows, "balance": balance}
        clips = {"train_dataset": ClipStream(train.rows, train.transform, seed=seed, **order), "eval_dataset": test}
        clips["validation_dataset"] = streams.get("validation")
        model = make_model(recipe, head, configs[fusion], seed)
        collator = build_collator(recipe, model.config, seed=seed, modality_dropout=options.modality_dropout)
        trainer = AVTrainer(model, run_args, collator, processing_class=processor, **clips)
        trainer.train()
        runs[fusion][seed] = scores_of(trainer.evaluate())
        print("  ".join(f"{name} {value:.4g}" for name, value in runs[fusion][seed].items()))
        comparison.keep(fusion, seed, configs[fusion], runs[fusion][seed])
        comparison.report(runs, costs, measured, task)
    print(
        comparison.report(runs, costs, measured, task), f"saved in {comparison.folder}: comparison.md, .csv and .json"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
