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

from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.pretraining import AVPreTrainer
from hf_avfusion.training.recipes.building import build_collator, build_frame_augmentation, build_fresh, load_checkpoint
from hf_avfusion.training.recipes.command_line import REFUSALS, parse_with_recipe, refuse
from hf_avfusion.training.recipes.record import keep_record
from hf_avfusion.visualization.reconstruction import ReconstructionCallback, check_not_sharded


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
        if self.picture_clip is not None and not Path(self.picture_clip).is_file():
            raise FileNotFoundError(f"--picture_clip {self.picture_clip}: no such file")


def prepare() -> tuple[Options, AVPreTrainer]:
    """All before the training: whatever cannot be is told here, and no work is lost."""
    # Adds the flags of `RecipeOptions`: --recipe, --model, --size, --num_frames, --config, ...
    run, options, args = parse_with_recipe(Options, AVTrainingArguments, task="pretraining")
    evaluates = (options.eval_split or "").lower() != "none"
    if options.picture_steps and (options.picture_clip or evaluates):
        check_not_sharded(args)
    set_seed(args.seed)

    where = {"source": options.source, "variant": options.variant, "labels": False}
    # Undecoded; that which is evaluated first, since its name is wrong more often.
    evaluated = load_rows(options.data, options.eval_split, flag="--eval_split", **where) if evaluates else None
    trained = load_rows(options.data, options.train_split, flag="--train_split", **where)
    options.eval_split = evaluated.split if evaluated else None

    # The processor's windows and sizes decide the model's inputs; a checkpoint brings both.
    build = build_fresh if run.checkpoint is None else load_checkpoint
    processor, model = build(run.recipe if run.checkpoint is None else run, {}, AutoModelForPreTraining)
    config = model.config
    print(f"{type(model).__name__}: {model.num_parameters():,} parameters")
    for modality in config.modalities:
        print(f"{modality}: {config.num_visible_tokens(modality)} of {config.num_tokens(modality)} tokens visible")

    augmentation = build_frame_augmentation(run.recipe, processor)

    def stream(split, mode, **shuffling):
        crop_and_flip = augmentation if mode == "train" else None
        # No label columns; of a model for sound alone the pictures are not even decoded.
        transform = ClipTransform(processor, (), mode=mode, augmentation=crop_and_flip, modalities=config.modalities)
        on_error = options.on_decode_failure
        return ClipStream(
            split.rows, transform, num_rows=split.num_rows, seed=args.seed, on_error=on_error, **shuffling
        )

    callbacks = []
    to_draw = [options.picture_clip] if options.picture_clip else evaluated and evaluated.rows
    if options.picture_steps and to_draw is not None:
        callbacks.append(ReconstructionCallback(processor, to_draw, options.picture_steps, seed=args.seed))
    trainer = AVPreTrainer(
        model,
        args,
        build_collator(run.recipe, config, seed=args.seed),
        train_dataset=stream(trained, "train", shuffle_buffer=options.shuffle_buffer),
        eval_dataset=stream(evaluated, "eval") if evaluated else None,
        processing_class=processor,
        callbacks=callbacks,
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
