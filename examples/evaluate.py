"""Scores checkpoints on a benchmark, or on a folder of your own videos: numbers, a table, figures.

    python examples/evaluate.py --checkpoint runs/mine --benchmark my_videos/ --output report
    python examples/evaluate.py --checkpoint org/mbt-vggsound --benchmark vggsound --source clips/ --views 4 --modalities av,a,v

    # mean and spread over seeds; other spans of the frames; both tracks from one place of the clip, or each from its own
    python examples/evaluate.py --runs runs/seed0 runs/seed1 runs/seed2 --benchmark audioset --source DIR --split eval \
        --spans 2,4,8 --sampling sync,async

    # checkpoints that differ (fusion layer, shared encoder, span): what each was trained with is read from it; results.json
    # of earlier evaluations stand beside checkpoints, and are not computed again: a stopped evaluation goes on, another --seed
    # of drawn windows, other spans or checkpoints are added
    python examples/evaluate.py --runs report/results.json runs/shared --benchmark vggsound --source clips/

    # the mean over ESC-50's folds or UCF101's splits: each model on its own, with the results of the others
    python examples/evaluate.py --runs fold1/results.json runs/fold2 --benchmark esc50 --variant fold2 --source DIR --output fold2

Without `--views` the windows are those of the architecture's published evaluation. `--modalities a` gives the same model
the sound alone. A model for event localisation (AVE) is scored on every second of the clips, each seen whole. results.json is
written after every pass over the clips, the rest at the end. Several processes share the clips:
torchrun --nproc_per_node 2 examples/evaluate.py ...
"""

import os
import sys
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import get_args

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import HfArgumentParser

from hf_avfusion.data.benchmarks.loading import BENCHMARKS
from hf_avfusion.data.streaming.ranks import Ranks
from hf_avfusion.evaluation import clips as clip_sets
from hf_avfusion.evaluation import reports, runs, tables
from hf_avfusion.evaluation.views import Aggregation


@dataclass
class Options:
    benchmark: str = field(
        metadata={"help": f"A benchmark ({', '.join(BENCHMARKS)}), or a folder of videos or its CSV file."}
    )
    checkpoint: str | None = field(default=None, metadata={"help": "Checkpoint folder or Hub repository."})
    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "Further checkpoints (other seeds, other settings), or results.json of earlier evaluations."},
    )
    source: str | None = field(
        default=None, metadata={"help": "Where a benchmark is: folder of shards or clips, or Hub repository."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of a benchmark, such as fold2 of esc50."})
    split: str | None = field(
        default=None, metadata={"help": "Split that is evaluated; default: test, or the benchmark's last."}
    )
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "The label, or one column per head of the model, in the heads' order."}
    )
    modalities: str = field(
        default="", metadata={"help": "What the model is given: av (both), a, v; default av,a,v, or what it can take."}
    )

    views: int | None = field(default=None, metadata={"help": "Windows per clip; default: as published."})
    crops: int | None = field(default=None, metadata={"help": "Crops in space of each window, 1 or 3."})
    aggregation: str | None = field(
        default=None, metadata={"help": "How views are joined (as published).", "choices": list(get_args(Aggregation))}
    )
    spans: str = field(default="", metadata={"help": "Also with frames spread over these seconds, such as 2,4,8."})
    sampling: str = field(
        default="", metadata={"help": "Also with windows drawn by chance: sync, async, or both (sync,async)."}
    )
    seed: int = field(default=0, metadata={"help": "Of windows drawn by chance."})

    output: str = field(default="evaluation", metadata={"help": "Folder of results.json, table.md and the figures."})
    top_classes: int = field(default=30, metadata={"help": "Classes in the figures; the CSV files hold all."})
    batch_size: int = field(default=4, metadata={"help": "Clips per batch, with all their views."})
    views_per_step: int = field(default=16, metadata={"help": "Views that pass through the model at a time."})
    workers: int = field(default=1, metadata={"help": "Processes that decode, for each process that computes."})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu",
        metadata={"help": "Where the model runs.", "choices": ["cpu", "cuda"]},
    )


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def seconds(text: str) -> list[float]:
    """The numbers of `--spans`."""
    numbers = []
    for part in parts(text):
        try:
            numbers.append(float(part))
        except ValueError:
            raise ValueError(f"--spans {text}: {part!r} is no number of seconds") from None
    return numbers


def check_options(options: Options) -> None:
    """What needs neither clips nor checkpoints."""
    for flag, least in {"top_classes": 1, "batch_size": 1, "views_per_step": 1, "views": 1, "workers": 0}.items():
        if (number := getattr(options, flag)) is not None and number < least:
            raise ValueError(f"--{flag} must be at least {least}, got {number}")
    if options.crops not in (None, 1, 3):
        raise ValueError(f"--crops must be 1 or 3, got {options.crops}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU here; give --device cpu")
    runs.conditions_of(seconds(options.spans), parts(options.sampling))
    runs.check_modalities(parts(options.modalities) or None)


def prepare(options: Options):
    """Everything read and checked before the work, the cheapest first: each checkpoint is loaded once, so that one that
    does not fit is told at once, and not after the others were evaluated.
    """
    check_options(options)
    names = [*([options.checkpoint] if options.checkpoint else []), *options.runs]
    checkpoints = [name for name in names if not reports.is_results(name)]
    if not checkpoints:
        raise ValueError("give a checkpoint to evaluate: --checkpoint X, or --runs X Y ...")
    if len(set(map(os.path.realpath, names))) < len(names):
        raise ValueError(f"--checkpoint, --runs: of {', '.join(names)} one comes twice, and would count as two runs")
    earlier = {name: reports.read_results(name) for name in names if reports.is_results(name)}
    rows = clip_sets.load_rows(options.benchmark, options.split, source=options.source, variant=options.variant)

    clips, classes, jobs = None, None, []
    numbers = {"num_views": options.views, "num_crops": options.crops, "aggregation": options.aggregation}
    done = [evaluation for results in earlier.values() for evaluation in results["evaluations"]]
    planned = [*done]
    for name in checkpoints:
        model, processor = runs.load_checkpoint(name)
        try:
            given = runs.check_modalities(parts(options.modalities) or None, model.config, options.benchmark)
            clips = clips or clip_sets.label_rows(rows, model.config, options.label_columns)
            own = clip_sets.ModelClasses.matched(model.config, clips).names
            if own != (classes or own):
                raise ValueError(f"it has other heads or classes than {checkpoints[0]}: not for one report")
            job = {"given": given, "protocol": runs.protocol_for(model.config, options.benchmark, **numbers)}
            job["conditions"] = runs.conditions_of(seconds(options.spans), parts(options.sampling), processor)
            passes = runs.plan_passes(name, model.config, processor, clips, seed=options.seed, **job)
            new = [not reports.all_done(each.evaluations, done) for each in passes]
            if any(new):  # of several passes those that were done before are not repeated
                job["conditions"], passes = list(compress(job["conditions"], new)), list(compress(passes, new))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        classes = own
        jobs.append((name, job))
        planned += [evaluation for each in passes for evaluation in each.evaluations]

    for name, results in earlier.items():
        reports.check_same(results, name, clips, classes)
    reports.check_once(planned)
    try:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {options.output}: {error.strerror}") from error
    return clips, classes, jobs, done


def main() -> int:
    (options,) = HfArgumentParser(Options, description=__doc__.split("\n")[0]).parse_args_into_dataclasses()
    state = PartialState(cpu=options.device == "cpu")  # under torchrun one process of several
    console = Console(quiet=not state.is_main_process)
    results = None
    try:
        clips, classes, jobs, evaluations = prepare(options)
    except (ValueError, OSError) as error:
        if state.is_main_process:
            print(f"error: {error}", file=sys.stderr)
        return 1

    for name, job in jobs:
        model, processor = runs.load_checkpoint(name, state.device)
        size, views = f"{model.num_parameters():,} parameters", f"{job['protocol'].total} views of each clip"
        console.print(f"{name}: {size}, {len(job['conditions'])} passes over {views}", markup=False)
        for condition in job["conditions"]:
            try:
                evaluations += runs.evaluate_checkpoint(
                    name, model, processor, clips, **{**job, "conditions": [condition]}, seed=options.seed,
                    batch_size=options.batch_size, views_per_step=options.views_per_step, num_workers=options.workers,
                    progress=state.is_main_process, ranks=Ranks(state.process_index, state.num_processes),
                )  # fmt: skip
            except ValueError as error:  # of this process's clips, so each process tells its own
                kept = f"; what was finished before is in {options.output}/{reports.RESULTS}" if results else ""
                print(f"error: {name}: {error}{kept}", file=sys.stderr)
                return 1
            results = reports.make_results(clips, classes, evaluations, options.seed)
            if state.is_main_process:
                reports.write_results(results, options.output)
    if state.is_main_process:
        written = reports.write_report(results, options.output, options.top_classes)
        print("", tables.markdown(results), *(f"written: {path}" for path in written), sep="\n")
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
