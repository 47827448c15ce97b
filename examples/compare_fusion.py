"""Which way of fusing is best on your data? Trains the variants of an architecture alike, over several seeds, and prints
one table: mean and spread of every metric, parameters, FLOPs, clips per second and peak memory.

    # a benchmark by its name, or your own folder of videos, as in finetune_classification.py
    python examples/compare_fusion.py --data my_videos/ --size small --num_frames 8 --span 8 --num_train_epochs 10 \
        --output_dir runs/fusion

    # the comparison on SoundingShapes: its many settings are in a file, and what is typed after it goes before it
    python examples/compare_fusion.py --args_file examples/compare_shapes.args --source shapes/ --output_dir runs/shapes

For one seed all variants see the same clips in the same order, under the same head; seeds change the order and the
initial weights. `--fusions bottleneck late` takes some variants, `--seeds 0 1 2 3` other seeds. A finished run is kept in
OUTPUT_DIR/runs and not repeated, so that a stopped comparison goes on where it was, and more seeds or variants can be
added. The table stands in OUTPUT_DIR/comparison.md, .csv and .json; `--costs_only` only measures the costs anew.
Every option of transformers' Trainer works too.
"""

import copy
import json
import platform
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
import transformers
from finetune_classification import Options as FineTuning
from finetune_classification import fresh_model, load_split
from rich import print
from rich.progress import track
from rich.table import Table
from transformers import HfArgumentParser, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import hf_avfusion
from hf_avfusion.data.augmentation import FrameAugmentation, SpecAugment
from hf_avfusion.data.benchmarks import BENCHMARKS
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.heads import head_fields
from hf_avfusion.data.streaming import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.comparison import Comparison
from hf_avfusion.evaluation.costs import compare_costs
from hf_avfusion.models.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.models.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.trainer import AVTrainer

# What sets the variants of an architecture apart in its configuration; a string is the value of another field.
FUSIONS = {
    "mbt": {
        "bottleneck": {"fusion": "bottleneck"},
        "bottleneck_shared": {"fusion": "bottleneck", "share_encoder": True},
        "self_attention": {"fusion": "self_attention"},
        "self_attention_shared": {"fusion": "self_attention", "share_encoder": True},
        "early": {"fusion": "self_attention", "share_encoder": True, "fusion_layer": 0},  # one encoder over all tokens
        "late": {"fusion": "bottleneck", "fusion_layer": "num_hidden_layers"},  # the streams' logits are averaged
    },
}


@dataclass
class Options(FineTuning):
    model: str = field(
        default="mbt", metadata={"help": "Architecture.", "aliases": ["--architecture"], "choices": list(FUSIONS)}
    )
    fusions: list[str] | None = field(default=None, metadata={"help": "Variants to compare; all if not given."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run per variant and seed."})
    fusion_layer: int | None = field(
        default=None, metadata={"help": "First layer that fuses, where the variant does not say (default: as published)."}
    )
    num_bottleneck_tokens: int | None = field(default=None, metadata={"help": "Bottleneck tokens (default: 4)."})
    feature_extractor: str = field(
        default="{}", metadata={"help": "JSON of fields of the log-mel front end, where it is not the published one."}
    )
    video_processor: str = field(default="{}", metadata={"help": "JSON of fields of the video processor, likewise."})
    decode_once: bool = field(
        default=False,
        metadata={"help": "Keep decoded clips in memory: quick, for small data; windows stay as first drawn, no --augment."},
    )
    costs_only: bool = field(default=False, metadata={"help": "Measure the costs anew, train nothing."})
    cost_rounds: int = field(default=10, metadata={"help": "Rounds over all variants when times are measured."})


# What may change between two runs that are compared; all else is kept with a run and checked when it is found finished.
FREE = ("fusions", "seeds", "costs_only", "cost_rounds", "fusion_layer", "num_bottleneck_tokens")  # the last: in its config
FREE_IN_TRAINING = ("output_dir", "seed", "run_name", "project", "report_to", "disable_tqdm", "dataloader_num_workers",
                    "dataloader_persistent_workers", "dataloader_prefetch_factor", "logging_steps", "logging_strategy",
                    "per_device_eval_batch_size", "save_strategy", "save_steps")  # fmt: skip


def make_processor(options: Options):
    """As published, but for the fields given."""
    kind, side = PROCESSOR_MAPPING[CONFIG_MAPPING[options.model]], options.image_size
    size = {"size": {"shortest_edge": round(side * 256 / 224)}, "crop_size": {"height": side, "width": side}}
    audio = json.loads(options.feature_extractor)
    if audio and "spectrogram_length" not in audio:
        raise ValueError("--feature_extractor: give spectrogram_length too, the frames that fill --audio_seconds")
    return kind(
        AVFusionVideoProcessor(**{**size, **json.loads(options.video_processor)}),
        AVFusionFeatureExtractor.from_preset(kind.audio_preset, **audio) if audio else None,
        num_frames=options.num_frames, span=options.span, audio_seconds=options.audio_seconds,
    )  # fmt: skip


def variant_fields(options: Options, processor, fusion: str) -> dict:
    """The fields of the configuration that are not the head's."""
    adjusted = {name: getattr(options, name) for name in ("fusion_layer", "num_bottleneck_tokens")}
    extractor = processor.feature_extractor
    fields = {
        "num_mel_bins": extractor.num_mel_bins,
        "spectrogram_length": extractor.spectrogram_length,
        **json.loads(options.config),
        **{name: value for name, value in adjusted.items() if value is not None},
        **FUSIONS[options.model][fusion],
    }
    sizes = getattr(CONFIG_MAPPING[options.model], options.size)(**json.loads(options.config))
    return {k: getattr(sizes, v) if k != "fusion" and isinstance(v, str) else v for k, v in fields.items()}


def make_model(options: Options, head: dict, fields: dict, seed: int):
    set_seed(seed)
    return fresh_model(replace(options, config=json.dumps(fields)), head)[1]


def decoded(stream: ClipStream, name: str) -> ClipStream:
    """The same clips from memory, decoded once; sharing their tensors, each run shuffles and seeds them anew."""
    samples = list(track(stream, f"decoding {name}", total=stream.num_rows))
    return ClipStream(samples, lambda sample, generator: dict(sample))


def main() -> None:
    parser = HfArgumentParser((Options, AVTrainingArguments))
    parser.set_defaults(save_strategy="no", report_to="none")
    options, args = parser.parse_args_into_dataclasses(args_file_flag="--args_file")
    known = FUSIONS[options.model]
    fusions = options.fusions or list(known)
    if wrong := [fusion for fusion in fusions if fusion not in known]:
        raise ValueError(f"--fusions {' '.join(wrong)}: the variants of {options.model} are {', '.join(known)}")
    if options.decode_once and options.augment:
        raise ValueError("--decode_once keeps the frames as they are: give --augment False too")

    rows = {split: load_split(options, split) for split in ("train", options.eval_split)}
    in_benchmark = BENCHMARKS[options.data].label_columns[:1] if options.data in BENCHMARKS else ["label"]
    columns = options.label_columns or list(in_benchmark)
    head, processor = head_fields(rows["train"][0].features, columns), make_processor(options)
    labels = {"label_columns": columns, "num_labels": len(head["id2label"])}
    augmentation = FrameAugmentation.for_processor(processor.video_processor) if options.augment else None
    transform = ClipTransform(processor, mode="train", augmentation=augmentation, **labels)
    transforms = {"train": transform, options.eval_split: ClipTransform(processor, **labels)}
    configs = {fusion: variant_fields(options, processor, fusion) for fusion in fusions}

    usual = AVTrainingArguments(output_dir=args.output_dir).to_dict()
    settings = {name: value for name, value in asdict(options).items() if name not in FREE}
    settings["training"] = {k: v for k, v in args.to_dict().items() if v != usual[k] and k not in FREE_IN_TRAINING}
    comparison = Comparison(args.output_dir, settings)
    runs = {f: {s: r for s in options.seeds if (r := comparison.finished(f, s, configs[f]))} for f in fusions}

    device = torch.cuda.get_device_name() if args.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    measured = {"device": device, "batch_size": args.per_device_train_batch_size, "configs": configs}
    costs = None if options.costs_only else comparison.costs(measured)
    if costs is None:
        print(f"measuring the costs of {len(fusions)} variants, {options.cost_rounds} rounds in turn on {device}")
        clips = ClipStream(rows["train"][0], transform)
        batch = lambda: AVCollator()(list(islice(clips, args.per_device_train_batch_size)))  # noqa: E731
        builders = {f: lambda f=f: make_model(options, head, configs[f], 0) for f in fusions}
        costs = compare_costs(builders, batch, device=args.device, rounds=options.cost_rounds)
        comparison.keep_costs(costs, measured)
    versions = {m.__name__: m.__version__ for m in (hf_avfusion, torch, transformers)}
    about = {"versions": versions | {"python": platform.python_version()}, "measured": measured}

    def report() -> None:
        headings, cells = comparison.report(runs, costs, about)
        table = Table(*headings, title=f"{options.data}: mean ± standard deviation over n seeds")
        for row in cells:
            table.add_row(*row)
        print(table, f"written to {Path(args.output_dir) / 'comparison'}.md, .csv and .json")

    todo = [(seed, fusion) for seed in options.seeds for fusion in fusions if seed not in runs[fusion]]
    if options.costs_only or not todo:
        report()
        return
    counts = {name: count for name, (_, count) in rows.items()}
    streams = {name: ClipStream(rows[name][0], transforms[name], num_rows=counts[name]) for name in rows}
    if options.decode_once:
        streams = {name: decoded(stream, name) for name, stream in streams.items()}
    for number, (seed, fusion) in enumerate(todo):
        print(f"\n[bold]run {number + 1} of {len(todo)}: {fusion}, seed {seed}[/]")
        own = copy.copy(args)
        own.seed, own.output_dir = seed, str(Path(args.output_dir) / "training" / f"{fusion}-seed{seed}")
        model = make_model(options, head, configs[fusion], seed)
        spec_augment = SpecAugment() if options.spec_augment else None
        mixing = {"mixup_alpha": options.mixup_alpha, "num_labels": labels["num_labels"]}
        collator = AVCollator(spec_augment=spec_augment, modality_dropout=options.modality_dropout, seed=seed, **mixing)
        train, test = (streams[name] for name in ("train", options.eval_split))
        stream = ClipStream(train.rows, train.transform, seed=seed, shuffle_buffer=options.shuffle_buffer, num_rows=train.num_rows)
        trainer = AVTrainer(model, own, collator, train_dataset=stream, eval_dataset=test, processing_class=processor)
        trainer.train()
        metrics = trainer.evaluate()
        ignored = ("runtime", "samples_per_second", "steps_per_second", "clips", "skipped_clips")
        result = {k: v for name, v in metrics.items() if name.startswith("eval_") and (k := name[5:]) not in ignored}
        comparison.keep(fusion, seed, configs[fusion], result)
        runs[fusion][seed] = result
        report()


if __name__ == "__main__":
    main()
