"""Fine-tunes an audio-visual classifier on a benchmark, or on a folder of your own videos.

    # your own videos: sub-folders named after the classes, or a CSV with the columns file,label[,start,end]
    python examples/finetune_classification.py --data my_videos/ --from_vit google/vit-base-patch16-224-in21k \
        --num_frames 8 --span 8 --output_dir runs/mine --num_train_epochs 10

    # a benchmark, from a folder of its shards or a Hub repository, as published; flags replace single values
    python -m hf_avfusion.training.recipes                  # lists the recipes
    python examples/finetune_classification.py --recipe mbt/vggsound --data vggsound --source DIR --output_dir runs/vggsound

    # the same on a small machine: 64 clips an update as published, 4 at a time; a smaller model of fewer, smaller frames
    ... --per_device_train_batch_size 4 --from_vit none --size small --image_size 112 --num_frames 8 --span 8

    # from a pretrained AV-MAE (pretrain_avmae.py): with its own encoder, as a linear probe, from sound alone, or into MBT
    ... --model runs/mae
    ... --model runs/mae --config '{"freeze_encoder": true}'
    ... --model runs/mae --config '{"modalities": ["audio"]}'
    ... --from_avmae runs/mae --config '{"fusion_layer": 8}'

    # event localisation: the class of each second of AVE's clips of 10 s, of which all is seen and heard
    ... --model runs/mae --data ave --source DIR --label_columns events --num_segments 10 --span 10 --audio_seconds 10

`--model` names an architecture (a fresh model of `--size`, or one that starts `--from_vit`), or a checkpoint: a
folder or a Hub id, whose head starts afresh if the number of labels is another. Every option of transformers' Trainer works too.
Model and processor are saved together in `--output_dir`, with what they were trained by in `recipe.json`; a stopped run goes on
with `--resume_from_checkpoint OUTPUT_DIR/checkpoint-N`, or `true` for the last one that was written to its end.
"""

import sys
from dataclasses import dataclass, field

from rich import print
from transformers import set_seed

from hf_avfusion.data import LabelBalance
from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.views import view_transform
from hf_avfusion.tasks import TASKS
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building import build_collator, build_frame_augmentation, build_fresh, load_checkpoint
from hf_avfusion.training.recipes.command_line import REFUSALS, parse_with_recipe, refuse
from hf_avfusion.training.recipes.record import keep_record
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
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split that is evaluated; by default `test`, or what there is instead, such as `eval` or `validation`."
        },
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Undecoded clips held back to shuffle the training stream."}
    )
    num_segments: int | None = field(
        default=None,
        metadata={
            "help": "Event localisation: the label column holds a class for each of so many equal parts of a clip."
        },
    )
    on_decode_failure: str = field(
        default="skip",
        metadata={
            "help": "A clip that does not decode: `skip` leaves it out, names it in the log and counts it; `stop` ends the run.",
            "choices": ["skip", "stop"],
        },
    )
    balance_labels: bool = field(
        default=False, metadata={"help": "Clips of rare labels come up more often: not each clip once per epoch."}
    )
    modality_dropout: float = field(
        default=0.0,
        metadata={"help": "Share of clips that lose a track in training, so that one model serves without it."},
    )


def prepare() -> tuple[Options, AVTrainer]:
    """All before the training: whatever cannot be is told here, and no work is lost."""
    # Adds the flags of `RecipeOptions`: --recipe, --model, --num_frames, --mixup_alpha, ...
    run, options, args = parse_with_recipe(Options, AVTrainingArguments)
    set_seed(args.seed)

    # Undecoded; that which is evaluated first, since its name may be wrong.
    where = {"source": options.source, "variant": options.variant}
    evaluated = load_rows(options.data, options.eval_split, flag="--eval_split", **where)
    trained = load_rows(options.data, "train", **where)
    options.eval_split = evaluated.split
    columns = options.label_columns or list(trained.record.label_columns[:1] if trained.record else ["label"])
    task = TASKS["classification" if options.num_segments is None else "event_localization"]
    head = task.config_fields(trained.rows.features, columns, options)

    # The processor's windows and sizes decide the model's inputs; a checkpoint brings both.
    processor, model = build_fresh(run.recipe, head) if run.checkpoint is None else load_checkpoint(run, head)
    print(
        f"{type(model).__name__}: {model.num_parameters():,} parameters, {model.config.num_labels} classes of {columns}"
    )

    augmentation = build_frame_augmentation(run.recipe, processor)
    # Of a model for audio alone the frames are not even decoded.
    read = {"labels": task.read_labels(columns, head), "modalities": model.config.modalities}
    trainer = AVTrainer(
        model,
        args,
        build_collator(run.recipe, model.config, seed=args.seed, modality_dropout=options.modality_dropout),
        train_dataset=ClipStream(
            trained.rows,
            ClipTransform(processor, mode="train", augmentation=augmentation, **read),
            seed=args.seed,
            on_error=options.on_decode_failure,
            shuffle_buffer=options.shuffle_buffer,
            num_rows=trained.num_rows,
            balance=LabelBalance.of(trained.rows, columns[0]) if options.balance_labels else None,
        ),
        eval_dataset=ClipStream(
            evaluated.rows,
            view_transform(processor, args.eval_views, **read),
            on_error=options.on_decode_failure,
            num_rows=evaluated.num_rows,
        ),
        processing_class=processor,
    )
    args.resume_from_checkpoint = trainer.check_start(args.resume_from_checkpoint)
    keep_record(run, trainer, augmentation)
    return options, trainer


def main() -> int:
    try:
        options, trainer = prepare()
    except REFUSALS as error:
        return refuse(error)
    args = trainer.args
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
