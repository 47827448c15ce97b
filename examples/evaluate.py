"""Evaluates checkpoints on a benchmark or on a folder of your own videos, and writes metrics, a table and figures.

    python examples/evaluate.py --checkpoint runs/mine --benchmark my_videos/ --output report
    python examples/evaluate.py --checkpoint org/mbt-vggsound --benchmark vggsound --source clips/ --views 4 --modalities av,a,v

    # mean and standard deviation over seeds; frames over other spans; video and audio from the same window (sync) or from
    # independent windows (async)
    python examples/evaluate.py --runs runs/seed0 runs/seed1 runs/seed2 --benchmark audioset --source DIR --split eval \
        --spans 2,4,8 --sampling sync,async

    # checkpoints with different settings (fusion layer, shared encoder, span), which the script reads from each checkpoint.
    # --runs also takes results.json of earlier evaluations, which are not computed again: use it to resume a stopped
    # evaluation, or to add another --seed of random windows, other spans or other checkpoints
    python examples/evaluate.py --runs report/results.json runs/shared --benchmark vggsound --source clips/

    # the mean over ESC-50's folds or UCF101's splits: evaluate each model on its own split and add the results of the others
    python examples/evaluate.py --runs fold1/results.json runs/fold2 --benchmark esc50 --variant fold2 --source DIR --output fold2

Without `--views`, the script uses the windows of the architecture's published evaluation. `--modalities a` evaluates the same
model on audio only. A model for event localisation (AVE) sees whole clips and is scored on every second. results.json is
written after every pass over the clips, the table and figures at the end. Several processes divide the clips among them:
torchrun --nproc_per_node 2 examples/evaluate.py ...
"""

import os
import sys
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from hf_avfusion.arguments import argument_parser, check_at_least, check_checkpoint, check_device, check_output_folder
from hf_avfusion.data.benchmarks.folders import check_exists
from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.data.benchmarks.splits import check_selection

# Those of hf_avfusion.evaluation, which takes seconds to import.
AGGREGATIONS = ("mean_logits", "mean_probabilities", "max_logits")
SAMPLINGS = ("spread", "sync", "async")


@dataclass
class Options:
    benchmark: str = field(
        metadata={"help": f"A benchmark ({', '.join(BENCHMARKS)}), or a folder of videos or its CSV file."}
    )
    checkpoint: str | None = field(default=None, metadata={"help": "Checkpoint folder or Hub repository."})
    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "More checkpoints (other seeds or settings), or results.json of earlier evaluations."},
    )
    source: str | None = field(
        default=None, metadata={"help": "Location of the benchmark: folder of shards or clips, or Hub repository."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of a benchmark, such as fold2 of esc50."})
    allow_urls: bool = field(
        default=False,
        metadata={
            "help": "Fetch clips whose path in a CSV file or shard is an address (URL); only for rows that you trust."
        },
    )
    split: str | None = field(
        default=None, metadata={"help": "Split to evaluate; default: test, or the benchmark's last."}
    )
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "The label column, or one column per head, in the order of the model's heads."}
    )
    modalities: str = field(
        default="",
        metadata={
            "help": "Modalities to evaluate with: av (both), a, v; default: av,a,v, or those that the model takes."
        },
    )

    views: int | None = field(default=None, metadata={"help": "Windows per clip; default: as published."})
    crops: int | None = field(default=None, metadata={"help": "Spatial crops per window, 1 or 3."})
    aggregation: str | None = field(
        default=None,
        metadata={"help": "How to join views; default: as published.", "choices": list(AGGREGATIONS)},
    )
    spans: str = field(default="", metadata={"help": "Also evaluate with frames over these seconds, such as 2,4,8."})
    sampling: str = field(
        default="", metadata={"help": "Also evaluate with random windows: sync, async, or both (sync,async)."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the random windows."})

    output: str = field(default="evaluation", metadata={"help": "Folder for results.json, table.md and the figures."})
    top_classes: int = field(default=30, metadata={"help": "Classes in the figures; the CSV files hold all."})
    batch_size: int = field(default=4, metadata={"help": "Clips per batch, with all their views."})
    views_per_step: int = field(default=16, metadata={"help": "Views per forward pass."})
    workers: int = field(default=1, metadata={"help": "Decoding processes per evaluating process."})
    device: str | None = field(
        default=None,
        metadata={"help": "Device of the model; default: cuda, or cpu without a GPU.", "choices": ["cpu", "cuda"]},
    )


def split_commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def seconds(text: str) -> list[float]:
    """The numbers of `--spans`."""
    numbers = []
    for part in split_commas(text):
        try:
            numbers.append(float(part))
        except ValueError:
            raise ValueError(
                f"--spans {text}: {part!r} is not a number of seconds; give numbers separated by commas, such as 2,4,8"
            ) from None
        if not 0 < numbers[-1] < float("inf"):
            raise ValueError(f"a span (--spans) must be a positive number of seconds, got {numbers[-1]}")
    return numbers


def parse() -> Options:
    (options,) = argument_parser(Options, description=__doc__.split("\n")[0]).parse_args_into_dataclasses()
    return options


def check_values(options: Options) -> None:
    """Checks the options whose values need neither clips nor checkpoints nor slow imports."""
    if options.checkpoint is None and not options.runs:
        raise ValueError("no checkpoint to evaluate: give --checkpoint X, or --runs X Y ...")
    check_output_folder("--output", options.output)
    check_at_least(
        1, top_classes=options.top_classes, batch_size=options.batch_size, views_per_step=options.views_per_step,
        views=options.views,
    )  # fmt: skip
    check_at_least(0, workers=options.workers)
    if options.crops not in (None, 1, 3):
        raise ValueError(f"--crops must be 1 or 3, got {options.crops}")
    check_device(options.device)
    seconds(options.spans)
    if wrong := [each for each in split_commas(options.sampling) if each not in SAMPLINGS]:
        raise ValueError(f"sampling (--sampling) must be one of {', '.join(SAMPLINGS)}, got {wrong[0]!r}")
    if wrong := [each for each in split_commas(options.modalities) if each not in ("av", "a", "v")]:
        raise ValueError(
            f"modalities (--modalities) must be some of av, a, v (both, audio, video), got {', '.join(wrong)}"
        )


def check_names(options: Options) -> None:
    """Checks that the named clips and checkpoints exist."""
    if options.benchmark not in BENCHMARKS:
        check_exists(options.benchmark)
    check_selection(options.benchmark, options.split, source=options.source, variant=options.variant)
    for flag, names in {"--checkpoint": [options.checkpoint], "--runs": options.runs}.items():
        for name in names:
            if name is not None and not name.endswith(".json") and not (Path(name) / "results.json").is_file():
                check_checkpoint(flag, name)


if __name__ == "__main__":  # wrong arguments are answered before the imports below, which take seconds
    try:
        check_values(options := parse())
        check_names(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

import torch
from accelerate import PartialState
from rich.console import Console

from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.data.streaming.ranks import Ranks
from hf_avfusion.evaluation import clips as clip_sets
from hf_avfusion.evaluation import reports, runs, tables


def check_options(options: Options) -> None:
    """Checks the options that need neither clips nor checkpoints."""
    check_values(options)
    runs.conditions_of(seconds(options.spans), split_commas(options.sampling))
    runs.check_modalities(split_commas(options.modalities) or None)


def prepare(options: Options):
    """Reads and checks all inputs before the first evaluation, the cheapest first.

    It loads each checkpoint once, so that a wrong one fails now and not after the others were evaluated.
    """
    check_options(options)
    names = [*([options.checkpoint] if options.checkpoint else []), *options.runs]
    checkpoints = [name for name in names if not reports.is_results(name)]
    if not checkpoints:
        raise ValueError("no checkpoint to evaluate: give --checkpoint X, or --runs X Y ...")
    if len(set(map(os.path.realpath, names))) < len(names):
        raise ValueError(
            f"--checkpoint, --runs: {', '.join(names)} contain a duplicate, which would count as two runs; give each once"
        )
    earlier = {name: reports.read_results(name) for name in names if reports.is_results(name)}
    where = {"source": options.source, "variant": options.variant, "allow_urls": options.allow_urls}
    rows = load_rows(options.benchmark, options.split, **where)

    clips, classes, jobs = None, None, []
    numbers = {"num_views": options.views, "num_crops": options.crops, "aggregation": options.aggregation}
    done = [evaluation for results in earlier.values() for evaluation in results["evaluations"]]
    planned = [*done]
    for name in checkpoints:
        model, processor = runs.load_checkpoint(name)
        try:
            given = runs.check_modalities(split_commas(options.modalities) or None, model.config, options.benchmark)
            clips = clips or clip_sets.label_rows(rows, model.config, options.label_columns)
            model_classes = clip_sets.ModelClasses.matched(model.config, clips)
            if model_classes.names != (classes or model_classes.names):
                raise ValueError(
                    f"its heads or classes differ from those of {checkpoints[0]}; evaluate it separately, with another"
                    " --output"
                )
            passes = runs.plan_passes(
                name, model.config, processor, clips, given=given, seed=options.seed,
                conditions=runs.conditions_of(seconds(options.spans), split_commas(options.sampling), processor),
                protocol=runs.protocol_for(model.config, options.benchmark, **numbers),
            )  # fmt: skip
            new = [not reports.all_done(each.evaluations, done) for each in passes]
            if any(new):  # keep only the passes that no earlier evaluation holds
                passes = list(compress(passes, new))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        classes = model_classes.names
        jobs.append((name, model_classes, passes))
        planned += [evaluation for each in passes for evaluation in each.evaluations]

    for name, results in earlier.items():
        reports.check_same(results, name, clips, classes)
    reports.check_once(planned)
    reports.check_output(options.output, names, clips)
    try:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {options.output}: {error.strerror}") from error
    return clips, classes, jobs, done


def main() -> int:
    options = parse()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    state = PartialState(cpu=options.device == "cpu")  # under torchrun, one of several processes
    console = Console(quiet=not state.is_main_process)
    results = None
    try:
        clips, classes, jobs, evaluations = prepare(options)
    except (ValueError, OSError) as error:
        if state.is_main_process:
            print(f"error: {error}", file=sys.stderr)
        return 1

    for name, model_classes, passes in jobs:
        model, _ = runs.load_checkpoint(name, state.device)
        size, views = f"{model.num_parameters():,} parameters", f"{passes[0].protocol.total} views of each clip"
        console.print(f"{name}: {size}, {len(passes)} passes over {views}", markup=False)
        for planned in passes:
            try:
                evaluations += runs.evaluate_pass(
                    model, planned, model_classes, clips.task,
                    batch_size=options.batch_size, views_per_step=options.views_per_step, num_workers=options.workers,
                    progress=state.is_main_process, ranks=Ranks(state.process_index, state.num_processes),
                )  # fmt: skip
            except ValueError as error:  # about this process's clips, so each process prints its own
                kept = f"; the finished passes are in {options.output}/{reports.RESULTS}" if results else ""
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
