"""Turns raw clips and their annotations into parquet shards that stream, and puts them on the Hub if you like.

    # a benchmark: a folder with its clips and the official annotation files
    python examples/prepare_benchmark.py vggsound --source clips/ --output shards/ \
        --trim --short_side 256 --fps 25 --num_proc 16

    # your own videos: sub-folders named after the classes, or a CSV with the columns file,label[,start,end]
    python examples/prepare_benchmark.py my_videos/ --output shards/ --short_side 256

    # shards that are there already (from above, or rendered by this package), to the Hub
    python examples/prepare_benchmark.py vggsound --output shards/ --push org/vggsound
    python examples/prepare_benchmark.py shards/ --output shards/ --push me/my_videos

Clips stay as they are unless they are cut (`--trim`) or made smaller; every one is decoded once, so that `coverage.md`,
written beside the shards, can tell for every class how many clips are there, have vanished, or do not decode and why. A
run that was stopped goes on with the same command. Then train with
`examples/finetune_classification.py --data vggsound --source shards/` (or `--source org/vggsound`).
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from transformers import HfArgumentParser

from hf_avfusion.data.benchmarks.loading import BENCHMARKS
from hf_avfusion.data.preparing.pushing import check_repo_id, push_shards
from hf_avfusion.data.preparing.reencoding import ClipSettings
from hf_avfusion.data.preparing.shards import ROWS_PER_SHARD, prepare_benchmark, prepare_folder


@dataclass
class Options:
    output: str = field(metadata={"help": "Folder of the shards and the report."})
    source: str | None = field(
        default=None, metadata={"help": "Folder of a benchmark's clips; without it the shards in --output are pushed."}
    )
    annotations: str | None = field(
        default=None, metadata={"help": "The official annotation file, or a folder with it, if not beside the clips."}
    )
    splits: list[str] | None = field(default=None, metadata={"help": "Some of the splits; all of them by default."})
    variant: str | None = field(default=None, metadata={"help": "Variant of a benchmark, such as fold2 of esc50."})
    trimmed: bool | None = field(
        default=None,
        metadata={
            "help": "Whether files named after the video alone are the cut clips (true) or whole videos (false)."
        },
    )
    holdout: float = field(default=0.2, metadata={"help": "Your own folder without splits: share of the test split."})
    seed: int = field(default=0, metadata={"help": "Your own folder without splits: seed of its division."})

    trim: bool = field(default=False, metadata={"help": "Cut clips to their annotated start and end."})
    short_side: int | None = field(default=None, metadata={"help": "Make larger pictures smaller, to this short side."})
    fps: float | None = field(default=None, metadata={"help": "Frames per second; by default as in the file."})
    crf: int = field(default=20, metadata={"help": "x264's constant rate factor of clips that are encoded anew."})
    check: bool = field(default=True, metadata={"help": "Decode clips that stay as they are, to find broken ones now."})

    rows_per_shard: int = field(default=ROWS_PER_SHARD, metadata={"help": "Clips in one file."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes; one per core by default."})
    overwrite: bool = field(default=False, metadata={"help": "Replace shards that were made with other settings."})

    push: str | None = field(default=None, metadata={"help": "Hub repository, ORG/NAME, that the shards are sent to."})
    private: bool = field(
        default=True, metadata={"help": "A repository made by --push is private: most videos are owned by others."}
    )


def main() -> int:
    parser = HfArgumentParser(Options, description=__doc__.split("\n")[0])
    parser.add_argument("data", help=f"A benchmark ({', '.join(BENCHMARKS)}), or a folder of videos or its CSV file.")
    options, positional = parser.parse_args_into_dataclasses()
    known = positional.data in BENCHMARKS
    there = options.source is None if known else Path(positional.data).resolve() == Path(options.output).resolve()
    if there and options.push is None:
        remedy = f"pass --source, the folder of the clips of {positional.data}" if known else "choose another --output"
        parser.error(f"{remedy}, or --push to send the shards in {options.output}")
    foreign = {"holdout", "seed"} if known else {"source", "annotations", "variant", "trimmed"}
    if there:  # nothing is prepared
        foreign = {option.name for option in fields(options)} - {"output", "variant", "push", "private"}
    given = [
        f"--{option.name}"
        for option in fields(options)
        if option.name in foreign and getattr(options, option.name) != option.default
    ]
    if given:
        what = f"{positional.data} is {'a benchmark' if known else 'a folder of your own'}"
        why = f"the shards in {options.output} are sent as they are" if there else what
        parser.error(f"{', '.join(given)} would change nothing: {why}")

    work = {
        "splits": options.splits,
        "rows_per_shard": options.rows_per_shard,
        "num_proc": options.num_proc,
        "overwrite": options.overwrite,
    }
    reports = {}
    try:
        if options.push is not None:
            check_repo_id(options.push)
        work["settings"] = ClipSettings(options.trim, options.short_side, options.fps, options.crf, options.check)
        if known and not there:
            where = {"variant": options.variant, "annotations": options.annotations, "trimmed": options.trimmed}
            reports = prepare_benchmark(positional.data, options.source, options.output, **where, **work)
        elif not there:
            division = {"holdout": options.holdout, "seed": options.seed}
            reports = prepare_folder(positional.data, options.output, **division, **work)
        for report in reports.values():
            print(report)
        if reports:
            print(f"shards in {options.output}; what is missing, and why: {Path(options.output) / 'coverage.md'}")

        if options.push is not None:
            name = positional.data if known else None
            url = push_shards(options.output, options.push, name=name, variant=options.variant, private=options.private)
            print(f"pushed to {url}")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the shards that are whole")
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
