"""Pretrains the audio-visual masked autoencoder on clips without labels: a benchmark's, or all that a folder holds.

    # your own videos, in whatever sub-folders
    python examples/pretrain_avmae.py --data my_videos/ --output_dir runs/mae --num_train_epochs 100 \
        --per_device_train_batch_size 32 --optimizer adam_decoupled --adam_beta2 0.95 --weight_decay 0.05 \
        --learning_rate 1.5e-4 --schedule warmup_cosine --warmup_epochs 4 --max_grad_norm 0

    # a benchmark, from a folder of its shards or a Hub repository, as published; on one machine of 8 GPUs
    torchrun --nproc_per_node 8 examples/pretrain_avmae.py --recipe avmae/pretrain-vggsound --data vggsound --source DIR \
        --output_dir runs/mae --per_device_train_batch_size 16 --bf16

    # on a small machine: a smaller model of fewer, smaller frames, 64 clips an update (the learning rate follows)
    ... --global_batch_size 64 --per_device_train_batch_size 8 --size small --image_size 112 --num_frames 8 --span 8

`--config` takes fields of `AVMAEConfig`, such as '{"encoder_strategy": "mid_fusion", "audio_mask_ratio": 0.7}' or '{"modalities":
["audio"]}'.
The log has the loss of each modality, `loss_video` and `loss_audio`; evaluation has them on masks that never change. Every
`--picture_steps` the same test clip is drawn as it is reconstructed, in OUTPUT_DIR/reconstructions. A stopped run goes on with
`--resume_from_checkpoint OUTPUT_DIR/checkpoint-N` (`true`: the last whole one), with the same clips, crops and masks as without the
stop.

Afterwards OUTPUT_DIR is a checkpoint: `finetune_classification.py --model OUTPUT_DIR` (or `--from_avmae OUTPUT_DIR`, into MBT) and
`reconstruct.py --model OUTPUT_DIR clip.mp4` go on from it.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich import print
from transformers import AutoModelForPreTraining, set_seed

from hf_avfusion.data.benchmarks import BENCHMARKS, coverage, evaluation_split, get_record, load_benchmark
from hf_avfusion.data.folders import find_evaluation_split, load_unlabelled
from hf_avfusion.data.streaming import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.pretraining import AVPreTrainer
from hf_avfusion.training.recipes.building import build_collator, build_frame_augmentation, build_fresh, load_checkpoint
from hf_avfusion.training.recipes.command_line import REFUSALS, parse_with_recipe, refuse
from hf_avfusion.training.recipes.record import print_record, record_resumed, record_run, save_record
from hf_avfusion.visualization.reconstruction import ReconstructionPictures, check_whole


@dataclass
class Options:
    data: str = field(
        metadata={"help": f"A benchmark ({', '.join(BENCHMARKS)}), or a folder of clips or its CSV file."}
    )
    source: str | None = field(
        default=None, metadata={"help": "Where a benchmark is: folder of shards or Hub repository."}
    )
    variant: str | None = field(default=None, metadata={"help": "Variant of a benchmark, such as full of audioset."})
    train_split: str = field(default="train", metadata={"help": "Split that is trained on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split that is evaluated and drawn, `none` for neither; by default `test`, or what there is instead, "
            "such as `eval` or `validation`."
        },
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Undecoded clips held back to shuffle the training stream."}
    )
    on_decode_failure: str = field(
        default="skip",
        metadata={
            "help": "A clip that does not decode: `skip` leaves it out, names it in the log and counts it; `stop` ends the run.",
            "choices": ["skip", "stop"],
        },
    )
    picture_steps: int = field(default=1000, metadata={"help": "Steps between reconstruction pictures; 0 for none."})
    picture_clip: str | None = field(
        default=None, metadata={"help": "Media file to draw; by default the first of the evaluated split."}
    )

    def __post_init__(self):
        if self.data not in BENCHMARKS and (self.source is not None or self.variant is not None):
            flag = "--source" if self.source is not None else "--variant"
            raise ValueError(f"{flag} is for the benchmarks {', '.join(BENCHMARKS)}; --data {self.data} is none")
        if self.eval_split is not None and self.eval_split.lower() == "none":
            self.eval_split = None  # from here on: nothing is evaluated
        elif self.data in BENCHMARKS:
            self.eval_split = evaluation_split(
                get_record(self.data, self.variant), self.eval_split, flag="--eval_split"
            )
        elif self.eval_split is None:
            self.eval_split = find_evaluation_split(self.data, labels=False)
        if self.picture_clip is not None and not Path(self.picture_clip).is_file():
            raise FileNotFoundError(f"--picture_clip {self.picture_clip}: no such file")


def load_split(options: Options, split: str):
    """The rows of a split, their videos undecoded, and how many there are (None: not known beforehand)."""
    if options.data not in BENCHMARKS:
        rows = load_unlabelled(options.data, split)
        return rows, len(rows)
    where = {"source": options.source, "variant": options.variant}
    rows = load_benchmark(options.data, split, **where)
    in_folder = options.source is not None and Path(options.source).is_dir()
    return rows, coverage(options.data, split, **where).present if in_folder else None


def prepare() -> tuple[Options, AVPreTrainer]:
    """All before the training: whatever cannot be is told here, and no work is lost."""
    # Adds the flags of `RecipeOptions`: --recipe, --model, --size, --num_frames, --config, ...
    run, options, args = parse_with_recipe(Options, AVTrainingArguments, task="pretraining")
    if options.picture_steps and (options.picture_clip or options.eval_split):
        check_whole(args)
    set_seed(args.seed)

    train_rows, train_count = load_split(options, options.train_split)
    eval_rows, eval_count = load_split(options, options.eval_split) if options.eval_split else (None, None)

    # The processor's windows and sizes decide the model's inputs; a checkpoint brings both.
    build = build_fresh if run.checkpoint is None else load_checkpoint
    processor, model = build(run.recipe if run.checkpoint is None else run, {}, AutoModelForPreTraining)
    config = model.config
    print(f"{type(model).__name__}: {model.num_parameters():,} parameters")
    for modality in config.modalities:
        print(f"{modality}: {config.num_visible_tokens(modality)} of {config.num_tokens(modality)} tokens visible")

    augmentation = build_frame_augmentation(run.recipe, processor)

    def stream(rows, count, mode, **shuffling):
        crop_and_flip = augmentation if mode == "train" else None
        # No label columns; of a model for sound alone the pictures are not even decoded.
        transform = ClipTransform(processor, (), mode=mode, augmentation=crop_and_flip, modalities=config.modalities)
        on_error = options.on_decode_failure
        return ClipStream(rows, transform, num_rows=count, seed=args.seed, on_error=on_error, **shuffling)

    callbacks = []
    to_draw = [options.picture_clip] if options.picture_clip else eval_rows
    if options.picture_steps and to_draw is not None:
        callbacks.append(ReconstructionPictures(processor, to_draw, options.picture_steps, seed=args.seed))
    trainer = AVPreTrainer(
        model,
        args,
        build_collator(run.recipe, config, seed=args.seed),
        train_dataset=stream(train_rows, train_count, "train", shuffle_buffer=options.shuffle_buffer),
        eval_dataset=None if eval_rows is None else stream(eval_rows, eval_count, "eval"),
        processing_class=processor,
        callbacks=callbacks,
    )
    args.resume_from_checkpoint = trainer.check_start(args.resume_from_checkpoint)
    record = record_resumed(record_run(run, trainer, augmentation), args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        save_record(record, args.output_dir)
        if run.published is not None or "resumed" in record:
            print_record(record)
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

    if options.eval_split is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics(options.eval_split, metrics)
        trainer.save_metrics(options.eval_split, metrics)
    skipped = trainer.train_dataset.skipped + (trainer.eval_dataset.skipped if options.eval_split is not None else 0)
    if skipped:
        print(f"[yellow]{skipped} times a clip was left out because it did not decode; the log above names it.[/]")
    print(f"saved in {args.output_dir}; try: python examples/reconstruct.py --model {args.output_dir} CLIP")
    return 0


if __name__ == "__main__":
    sys.exit(main())
