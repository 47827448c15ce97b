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

from hf_avfusion.tasks import TASKS
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.pretraining import AVPreTrainer
from hf_avfusion.training.recipes.building_runs import DataOptions, RunData, build_run, train_and_evaluate
from hf_avfusion.training.recipes.command_line import REFUSALS, parse_with_recipe, refuse
from hf_avfusion.visualization.reconstruction import ReconstructionCallback, check_not_sharded


@dataclass
class Options(DataOptions):
    picture_steps: int = field(default=1000, metadata={"help": "Steps between reconstruction pictures; 0 for none."})
    picture_clip: str | None = field(
        default=None, metadata={"help": "Media file to draw; by default the first of the evaluated split."}
    )

    def __post_init__(self):
        if self.picture_clip is not None and not Path(self.picture_clip).is_file():
            raise FileNotFoundError(f"--picture_clip {self.picture_clip}: no such file")


def prepare() -> tuple[Options, AVPreTrainer]:
    """Everything before the training, so that wrong arguments stop the script before work is lost."""
    # Adds the flags of `RecipeOptions`: --recipe, --model, --size, --num_frames, --config, ...
    run, options, args = parse_with_recipe(Options, AVTrainingArguments, task="pretraining")
    if options.picture_steps and (options.picture_clip or (options.eval_split or "").lower() != "none"):
        check_not_sharded(args)
    data = RunData.load(options, labels=False)  # undecoded

    def drawing(processor):
        clips = [options.picture_clip] if options.picture_clip else data.evaluated and data.evaluated.rows
        if not options.picture_steps or clips is None:
            return []
        return [ReconstructionCallback(processor, clips, options.picture_steps, seed=args.seed)]

    task = TASKS["pretraining"]
    trainer = build_run(task, run, options, args, data, trainer_class=AVPreTrainer, callbacks=drawing)
    model, config = trainer.model, trainer.model.config
    print(f"{type(model).__name__}: {model.num_parameters():,} parameters")
    for modality in config.modalities:
        print(f"{modality}: {config.num_visible_tokens(modality)} of {config.num_tokens(modality)} tokens visible")
    return options, trainer


def main() -> int:
    try:
        options, trainer = prepare()
    except REFUSALS as error:
        return refuse(error)
    skipped = train_and_evaluate(trainer, options.eval_split)
    if skipped:
        print(f"[yellow]{skipped} times a clip was left out because it did not decode; the log above names it.[/]")
    folder = trainer.args.output_dir
    print(f"saved in {folder}; try: python examples/reconstruct.py --model {folder} CLIP")
    return 0


if __name__ == "__main__":
    sys.exit(main())
