"""Packs raw clips and their annotations into parquet shards for streaming, and optionally pushes them to the Hub.

    # a benchmark: a folder with its clips and the official annotation files
    python examples/prepare_benchmark.py vggsound --source clips/ --output shards/ \
        --trim --short_side 256 --fps 25 --num_proc 16

    # your own videos: sub-folders named after the classes, or a CSV with the columns file,label[,start,end]
    python examples/prepare_benchmark.py my_videos/ --output shards/ --short_side 256

    # push existing shards (from above, or rendered by this package) to the Hub
    python examples/prepare_benchmark.py vggsound --output shards/ --push org/vggsound
    python examples/prepare_benchmark.py shards/ --output shards/ --push me/my_videos

Clips are re-encoded only if they are cut (`--trim`), made smaller (`--short_side`) or resampled (`--fps`). Every clip is decoded
once. The report `coverage.md`, written next to the shards, counts for every class the clips that are present, missing or
undecodable, with the reasons. The same command resumes a stopped run. Then train with
`examples/finetune_classification.py --data vggsound --source shards/` (or `--source org/vggsound`).
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from hf_avfusion.arguments import argument_parser, check_at_least
from hf_avfusion.data.benchmarks.folders import check_exists, check_holdout
from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.data.benchmarks.splits import check_selection
from hf_avfusion.data.preparing.settings import ClipSettings, check_repo_id


@dataclass
class Options:
    output: str = field(metadata={"help": "Folder for the shards and the report."})
    source: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the benchmark's clips; without it, --push pushes the existing shards in --output."
        },
    )
    annotations: str | None = field(
        default=None,
        metadata={"help": "The official annotation file, or a folder with it; default: the folder of the clips."},
    )
    splits: list[str] | None = field(default=None, metadata={"help": "Splits to prepare; default: all."})
    variant: str | None = field(default=None, metadata={"help": "Variant of a benchmark, such as fold2 of esc50."})
    trimmed: bool | None = field(
        default=None,
        metadata={"help": "Whether files named after the video alone are cut clips (true) or whole videos (false)."},
    )
    holdout: float = field(
        default=0.2, metadata={"help": "For your own folder without splits: share of clips in the test split."}
    )
    seed: int = field(default=0, metadata={"help": "For your own folder without splits: seed of the random split."})

    trim: bool = field(default=False, metadata={"help": "Cut clips to their annotated start and end."})
    short_side: int | None = field(
        default=None, metadata={"help": "Shrink larger frames to this length of the short side, in pixels."}
    )
    fps: float | None = field(default=None, metadata={"help": "Frames per second; default: as in the file."})
    crf: int = field(default=20, metadata={"help": "x264's constant rate factor for re-encoded clips."})
    check: bool = field(
        default=True, metadata={"help": "Also decode clips that are not re-encoded, to find broken ones."}
    )

    rows_per_shard: int = field(default=256, metadata={"help": "Clips per shard file."})
    num_proc: int | None = field(default=None, metadata={"help": "Number of processes; default: one per core."})
    overwrite: bool = field(default=False, metadata={"help": "Replace shards that were made with other settings."})

    push: str | None = field(default=None, metadata={"help": "Hub repository, ORG/NAME, to push the shards to."})
    private: bool = field(
        default=True,
        metadata={"help": "Make a repository that --push creates private, since most videos are not yours to publish."},
    )

    def __post_init__(self) -> None:
        check_at_least(1, rows_per_shard=self.rows_per_shard, num_proc=self.num_proc)
        check_holdout(self.holdout)
        self.clip_settings()
        if self.push is not None:
            check_repo_id(self.push)

    def clip_settings(self) -> ClipSettings:
        return ClipSettings(self.trim, self.short_side, self.fps, self.crf, self.check)


def parse() -> tuple[Options, str, bool]:
    """The options, the benchmark or folder, and whether existing shards are only pushed."""
    parser = argument_parser(Options, description=__doc__.split("\n")[0])
    parser.add_argument("data", help=f"A benchmark ({', '.join(BENCHMARKS)}), or a folder of videos or its CSV file.")
    options, positional = parser.parse_args_into_dataclasses()
    known = positional.data in BENCHMARKS
    only_push = options.source is None if known else Path(positional.data).resolve() == Path(options.output).resolve()
    if only_push and options.push is None:
        remedy = f"pass --source, the folder of the clips of {positional.data}" if known else "choose another --output"
        parser.error(f"{remedy}, or --push to push the existing shards in {options.output}")
    without_effect = {"holdout", "seed"} if known else {"source", "annotations", "variant", "trimmed"}
    if only_push:
        without_effect = {option.name for option in fields(options)} - {"output", "variant", "push", "private"}
    unused = [
        f"--{option.name}"
        for option in fields(options)
        if option.name in without_effect and getattr(options, option.name) != option.default
    ]
    if unused:
        reason = f"{positional.data} is {'a benchmark' if known else 'a folder of your own'}"
        if only_push:
            reason = f"the shards in {options.output} are pushed as they are"
        parser.error(
            f"{', '.join(unused)} would change nothing: {reason}; leave {'them' if len(unused) > 1 else 'it'} out"
        )
    try:
        if not known:
            check_exists(positional.data)
        elif options.source is not None and not Path(options.source).is_dir():
            raise FileNotFoundError(f"--source {options.source}: no such folder; give the folder of the clips")
        check_selection(positional.data, *(options.splits or ()), variant=options.variant, flag="--splits")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return options, positional.data, only_push


if __name__ == "__main__":
    parse()  # wrong arguments are answered before the imports below, which take seconds

from hf_avfusion.data.preparing.pushing import push_shards
from hf_avfusion.data.preparing.shards import prepare_benchmark, prepare_folder


def main() -> int:
    options, data, only_push = parse()
    known = data in BENCHMARKS
    work = {
        "splits": options.splits,
        "rows_per_shard": options.rows_per_shard,
        "num_proc": options.num_proc,
        "overwrite": options.overwrite,
        "settings": options.clip_settings(),
    }
    reports = {}
    try:
        if known and not only_push:
            where = {"variant": options.variant, "annotations": options.annotations, "trimmed": options.trimmed}
            reports = prepare_benchmark(data, options.source, options.output, **where, **work)
        elif not only_push:
            division = {"holdout": options.holdout, "seed": options.seed}
            reports = prepare_folder(data, options.output, **division, **work)
        for report in reports.values():
            print(report)
        if reports:
            print(f"shards are in {options.output}; missing clips are listed in {Path(options.output) / 'coverage.md'}")

        if options.push is not None:
            name = data if known else None
            url = push_shards(options.output, options.push, name=name, variant=options.variant, private=options.private)
            print(f"pushed to {url}")
    except KeyboardInterrupt:
        print("stopped; the same command continues after the finished shards")
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
