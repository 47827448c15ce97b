"""Scores checkpoints on a benchmark, or on a folder of your own videos: numbers, a table, figures.

    python examples/evaluate.py --checkpoint runs/mine --benchmark my_videos/ --output report
    python examples/evaluate.py --checkpoint org/mbt-vggsound --benchmark vggsound --source clips/ --views 4 --modalities av,a,v

    # mean and spread over seeds; other spans of the frames; both tracks from one place of the clip, or each from its own
    python examples/evaluate.py --runs runs/seed0 runs/seed1 runs/seed2 --benchmark audioset --source DIR --split eval \
        --spans 2,4,8 --sampling sync,async

    # checkpoints that differ (fusion layer, shared encoder, span): what each was trained with is read from it; results.json
    # of earlier evaluations stand beside checkpoints, and are not computed again
    python examples/evaluate.py --runs report/results.json runs/shared --benchmark vggsound --source clips/

Without `--views` the windows are those of the architecture's published evaluation. `--modalities a` gives the same model
the sound alone. Several processes share the clips: torchrun --nproc_per_node 2 examples/evaluate.py ...
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import HfArgumentParser

from hf_avfusion.data.benchmarks import BENCHMARKS
from hf_avfusion.evaluation import reports, runs
from hf_avfusion.evaluation.views import Aggregation
from hf_avfusion.training.ranks import Ranks


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
    split: str = field(default="test", metadata={"help": "Split that is evaluated."})
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "The label, or one column per head of the model, in the heads' order."}
    )
    modalities: str = field(default="av,a,v", metadata={"help": "What the model is given: av (both), a, v."})

    views: int | None = field(default=None, metadata={"help": "Windows per clip; default: as published."})
    crops: int | None = field(default=None, metadata={"help": "Crops in space of each window, 1 or 3."})
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How a clip's views are joined; default: as published.",
            "choices": list(get_args(Aggregation)),
        },
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
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Where the model runs: cpu or cuda."}
    )


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def is_results(name: str) -> bool:
    """A results.json, or a folder that holds one and no checkpoint."""
    path = Path(name)
    return path.suffix == ".json" or ((path / reports.RESULTS).is_file() and not (path / "config.json").is_file())


def prepare(options: Options):
    """Everything read and checked before the work: each checkpoint is loaded once, so that one that does not fit is told
    at once, and not after the others were evaluated.
    """
    spans, samplings, given = (
        [float(part) for part in parts(options.spans)],
        parts(options.sampling),
        parts(options.modalities),
    )
    runs.conditions_of(spans, samplings)
    names = [*([options.checkpoint] if options.checkpoint else []), *options.runs]
    checkpoints = [name for name in names if not is_results(name)]
    if not checkpoints:
        raise ValueError("give a checkpoint to evaluate: --checkpoint X, or --runs X Y ...")
    if options.top_classes < 1 or options.batch_size < 1 or options.views_per_step < 1:
        raise ValueError("--top_classes, --batch_size and --views_per_step must be at least 1")

    clips, classes, jobs = None, None, []
    where = {"source": options.source, "variant": options.variant, "label_columns": options.label_columns}
    numbers = {"num_views": options.views, "num_crops": options.crops, "aggregation": options.aggregation}
    for name in checkpoints:
        model, processor = runs.load_checkpoint(name)
        runs.check_given(given, model.config, options.benchmark)
        if clips is None:
            clips = runs.load_evaluation_set(options.benchmark, options.split, **where, config=model.config)
        own = runs.Heads.fitted(model.config, clips).classes
        if classes is not None and own != classes:
            raise ValueError(
                f"{name} has other heads or classes than {checkpoints[0]}: their scores cannot be averaged"
            )
        classes = own
        protocol = runs.protocol_for(model.config, options.benchmark, **numbers)
        jobs.append((name, protocol, runs.conditions_of(spans, samplings, processor)))

    earlier = []
    for path in filter(is_results, names):
        results = reports.read_results(path)
        reports.check_same(results, path, clips, classes)
        earlier += results["evaluations"]
    return clips, classes, given, jobs, earlier


def main() -> int:
    (options,) = HfArgumentParser(Options, description=__doc__.split("\n")[0]).parse_args_into_dataclasses()
    state = PartialState(cpu=options.device == "cpu")  # under torchrun one process of several
    console = Console(quiet=not state.is_main_process)
    try:
        clips, classes, given, jobs, evaluations = prepare(options)
    except (ValueError, FileNotFoundError) as error:
        if state.is_main_process:
            print(f"error: {error}", file=sys.stderr)
        return 1

    for name, protocol, conditions in jobs:
        model, processor = runs.load_checkpoint(name, state.device)
        size, views = (
            f"{model.num_parameters():,} parameters",
            f"{protocol.num_views} views x {protocol.num_crops} crops",
        )
        console.print(f"{name}: {size}, {len(conditions)} evaluations over {views}", markup=False)
        evaluations += runs.evaluate_checkpoint(
            name, model, processor, clips, given=given, conditions=conditions, protocol=protocol, seed=options.seed,
            batch_size=options.batch_size, views_per_step=options.views_per_step, num_workers=options.workers,
            progress=state.is_main_process, ranks=Ranks(state.process_index, state.num_processes),
        )  # fmt: skip
    if state.is_main_process:
        results = reports.make_results(clips, classes, evaluations, options.seed)
        written = reports.write_report(results, options.output, options.top_classes)
        print("", reports.markdown(results), *(f"written: {path}" for path in written), sep="\n")
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
