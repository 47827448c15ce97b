"""Fine-tunes an audio-visual classifier on a benchmark, or on a folder of your own videos.

    # your own videos: sub-folders named after the classes, or a CSV with the columns file,label[,start,end]
    python examples/finetune_classification.py --data my_videos/ --from_vit google/vit-base-patch16-224-in21k \
        --num_frames 8 --span 8 --output_dir runs/mine --num_train_epochs 10

    # a benchmark from a folder of its shards or a Hub repository; optimiser and schedule as MBT was published
    python examples/finetune_classification.py --data sounding_shapes --source DIR --output_dir runs/shapes \
        --optimizer momentum_sgd --learning_rate 0.5 --schedule warmup_cosine --warmup_epochs 2.5 --num_train_epochs 50

`--model` names an architecture (a fresh model of `--size`, or one that starts `--from_vit`), or a checkpoint: a
folder or a Hub id, whose head starts afresh if the number of labels is another. Every option of transformers' Trainer works too.
Model and processor are saved together in `--output_dir`; a stopped run goes on with `--resume_from_checkpoint
OUTPUT_DIR/checkpoint-N`.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from rich import print
from transformers import AutoConfig, AutoProcessor, HfArgumentParser, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from hf_avfusion import AutoModelForAudioVisualClassification
from hf_avfusion.data.augmentation import FrameAugmentation, SpecAugment
from hf_avfusion.data.benchmarks import BENCHMARKS, coverage, load_benchmark
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.folders import load_folder
from hf_avfusion.data.heads import head_fields
from hf_avfusion.data.streaming import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.views import view_transform
from hf_avfusion.models.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.trainer import AVTrainer


@dataclass
class Options:
    data: str = field(
        metadata={"help": f"A benchmark ({', '.join(BENCHMARKS)}), or a folder of videos or its CSV file."}
    )
    source: str | None = field(
        default=None, metadata={"help": "Where a benchmark is: folder of shards or Hub repository."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of a benchmark, such as fold2 of esc50."})
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "The label; several columns make several heads (such as verb noun)."}
    )
    eval_split: str = field(default="test", metadata={"help": "Split that is evaluated."})
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Undecoded clips held back to shuffle the training stream."}
    )

    model: str = field(default="mbt", metadata={"help": "Architecture by name, or checkpoint by folder or Hub id."})
    size: str = field(
        default="base", metadata={"help": "Size of a fresh model.", "choices": ["small", "base", "large"]}
    )
    from_vit: str | None = field(
        default=None, metadata={"help": "Image ViT checkpoint that a fresh model starts from."}
    )
    config: str = field(default="{}", metadata={"help": "JSON of further configuration fields of a fresh model."})
    image_size: int = field(default=224, metadata={"help": "Fresh model: side of the frames, pixels."})
    num_frames: int = field(default=32, metadata={"help": "Fresh model: frames per clip."})
    span: float | None = field(
        default=None, metadata={"help": "Fresh model: spread the frames over this many seconds."}
    )
    audio_seconds: float = field(default=8.0, metadata={"help": "Fresh model: length of the sound, seconds."})

    augment: bool = field(default=True, metadata={"help": "Published frame augmentation (scale, crop, flip, colour)."})
    spec_augment: bool = field(default=True, metadata={"help": "Published SpecAugment (one frequency mask)."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Mixup; MBT was published with 0.5."})
    modality_dropout: float = field(
        default=0.0,
        metadata={"help": "Share of clips that lose a track in training, so that one model serves without it."},
    )


FRESH_ONLY = ("size", "from_vit", "config", "image_size", "num_frames", "span", "audio_seconds")


def load_split(options: Options, split: str):
    """The rows of a split, their videos undecoded, and how many there are (None: not known beforehand)."""
    if options.data not in BENCHMARKS:
        rows = load_folder(options.data, split)
        return rows, len(rows)
    where = {"source": options.source, "variant": options.variant}
    rows = load_benchmark(options.data, split, **where)
    in_folder = options.source is not None and Path(options.source).is_dir()
    return rows, coverage(options.data, split, **where).present if in_folder else None


def fresh_model(options: Options, head: dict):
    """Processor and model of an architecture; the processor's numbers decide the model's input sizes."""
    config_class = CONFIG_MAPPING[options.model]
    model_classes = AutoModelForAudioVisualClassification._model_mapping
    if config_class not in model_classes:
        known = ", ".join(config.model_type for config in model_classes)
        raise ValueError(f"--model {options.model} is no audio-visual architecture; there are: {known}")
    try:
        given = json.loads(options.config)
    except json.JSONDecodeError as error:
        raise ValueError(f"--config {options.config!r} is not JSON: {error}") from error
    if unknown := [name for name in given if not hasattr(config_class(), name)]:
        raise ValueError(f"--config: {config_class.__name__} has no fields {', '.join(unknown)}")
    side = options.image_size  # the published 256 : 224 between the short side and the crop
    video_processor = AVFusionVideoProcessor(
        size={"shortest_edge": round(side * 256 / 224)}, crop_size={"height": side, "width": side}
    )
    processor = PROCESSOR_MAPPING[config_class](
        video_processor, num_frames=options.num_frames, span=options.span, audio_seconds=options.audio_seconds
    )
    fields = {
        "image_size": side,
        "num_frames": options.num_frames,
        "num_mel_bins": processor.feature_extractor.num_mel_bins,
        "spectrogram_length": processor.feature_extractor.spectrogram_length,
        **head,
        **given,
    }
    if options.from_vit:
        return processor, model_classes[config_class].from_vit(options.from_vit, **fields)
    return processor, AutoModelForAudioVisualClassification.from_config(getattr(config_class, options.size)(**fields))


def main() -> None:
    options, args = HfArgumentParser((Options, AVTrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)

    train_rows, train_count = load_split(options, "train")
    eval_rows, eval_count = load_split(options, options.eval_split)
    columns = options.label_columns or list(
        BENCHMARKS[options.data].label_columns[:1] if options.data in BENCHMARKS else ["label"]
    )
    head = head_fields(train_rows.features, columns)

    if options.model in CONFIG_MAPPING:
        processor, model = fresh_model(options, head)
    else:
        if ignored := [
            f.name for f in fields(Options) if f.name in FRESH_ONLY and getattr(options, f.name) != f.default
        ]:
            raise ValueError(f"--{', --'.join(ignored)}: for a fresh model only; {options.model} is a checkpoint")
        processor = AutoProcessor.from_pretrained(options.model)
        config = AutoConfig.from_pretrained(options.model, **head)
        model = AutoModelForAudioVisualClassification.from_pretrained(
            options.model, config=config, ignore_mismatched_sizes=True
        )
    print(
        f"{type(model).__name__}: {model.num_parameters():,} parameters, {model.config.num_labels} classes of {columns}"
    )

    augmentation = FrameAugmentation.for_processor(processor.video_processor) if options.augment else None
    labels = {"label_columns": columns, "num_labels": model.config.num_labels}
    trainer = AVTrainer(
        model,
        args,
        AVCollator(
            spec_augment=SpecAugment() if options.spec_augment else None,
            mixup_alpha=options.mixup_alpha,
            modality_dropout=options.modality_dropout,
            num_labels=model.config.num_labels,
            seed=args.seed,
        ),
        train_dataset=ClipStream(
            train_rows,
            ClipTransform(processor, mode="train", augmentation=augmentation, **labels),
            seed=args.seed,
            shuffle_buffer=options.shuffle_buffer,
            num_rows=train_count,
        ),
        eval_dataset=ClipStream(eval_rows, view_transform(processor, args.eval_views, **labels), num_rows=eval_count),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()  # the model and, beside it, its processor
    trainer.save_state()

    metrics = trainer.evaluate()
    trainer.log_metrics(options.eval_split, metrics)
    trainer.save_metrics(options.eval_split, metrics)
    skipped = trainer.train_dataset.skipped + trainer.eval_dataset.skipped
    if skipped:
        print(f"[yellow]{skipped} times a clip was left out because it did not decode; the log above names it.[/]")
    print(f"saved in {args.output_dir}; try: python examples/predict.py --model {args.output_dir} CLIP")


if __name__ == "__main__":
    main()
