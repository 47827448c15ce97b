"""Pretrains the audio-visual masked autoencoder on clips without labels, from a benchmark or a folder.

    # your own videos, in any sub-folders
    python examples/pretrain_avmae.py --data my_videos/ --output_dir runs/mae --num_train_epochs 100 \
        --per_device_train_batch_size 32 --optimizer adam_decoupled --adam_beta2 0.95 --weight_decay 0.05 \
        --learning_rate 1.5e-4 --schedule warmup_cosine --warmup_epochs 4 --max_grad_norm 0

    # a benchmark from a folder of its shards or a Hub repository, with a published recipe; on one machine with 8 GPUs
    torchrun --nproc_per_node 8 examples/pretrain_avmae.py --recipe avmae/pretrain-vggsound --data vggsound --source DIR \
        --output_dir runs/mae --per_device_train_batch_size 16 --bf16

    # on a small machine: a smaller model with fewer and smaller frames and batches of 64 (the learning rate is scaled to match)
    ... --global_batch_size 64 --per_device_train_batch_size 8 --size small --image_size 112 --num_frames 8 --span 8

`--config` takes fields of `AVMAEConfig`, such as '{"encoder_strategy": "mid_fusion", "audio_mask_ratio": 0.7}' or '{"modalities":
["audio"]}'. The log holds the loss of each modality, `loss_video` and `loss_audio`. Evaluation computes them with fixed masks.
Every `--picture_steps` steps, the reconstruction of one fixed test clip is drawn into OUTPUT_DIR/reconstructions.

To resume a stopped run, add `--resume_from_checkpoint OUTPUT_DIR/checkpoint-N` (`true`: the last complete checkpoint). The resumed
run sees the same clips, crops and masks as one without a stop.

Afterwards OUTPUT_DIR is a checkpoint. Use it with `finetune_classification.py --model OUTPUT_DIR` (or `--from_avmae OUTPUT_DIR` to
fine-tune an MBT) and `reconstruct.py --model OUTPUT_DIR clip.mp4`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hf_avfusion.training.recipes.options import DataOptions, check_arguments


@dataclass
class Options(DataOptions):
    picture_steps: int = field(default=1000, metadata={"help": "Steps between reconstruction pictures; 0 for none."})
    picture_clip: str | None = field(
        default=None, metadata={"help": "Media file to draw; default: the first clip of the evaluated split."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.picture_clip is not None and not Path(self.picture_clip).is_file():
            raise FileNotFoundError(f"--picture_clip {self.picture_clip}: no such file")


if __name__ == "__main__":
    check_arguments(Options)  # wrong arguments are answered before the imports below, which take seconds

from rich import print

from hf_avfusion.tasks import TASKS
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.pretraining import AVPreTrainer
from hf_avfusion.training.recipes.building_runs import RunData, build_run, run_script
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.visualization.reconstruction import ReconstructionCallback, check_not_sharded


def prepare() -> tuple[Options, AVPreTrainer]:
    """Loads and checks everything that training needs, so that wrong arguments fail early."""
    # Adds the flags of `RecipeOptions`: --recipe, --model, --size, --num_frames, --config, ...
    run, options, args = parse_with_recipe(Options, AVTrainingArguments, task="pretraining")
    if options.picture_steps and (options.picture_clip or (options.eval_split or "").lower() != "none"):
        check_not_sharded(args)
    data = RunData.load(options, args, labels=False)  # undecoded

    def picture_callbacks(processor):
        clips = [options.picture_clip] if options.picture_clip else data.evaluated and data.evaluated.rows
        if not options.picture_steps or clips is None:
            return []
        drawing = {"seed": args.seed, "allow_urls": options.allow_urls}
        return [ReconstructionCallback(processor, clips, options.picture_steps, **drawing)]

    task = TASKS["pretraining"]
    trainer = build_run(task, run, options, args, data, trainer_class=AVPreTrainer, callbacks=picture_callbacks)
    model, config = trainer.model, trainer.model.config
    print(f"{type(model).__name__}: {model.num_parameters():,} parameters")
    for modality in config.modalities:
        print(f"{modality}: {config.num_visible_tokens(modality)} of {config.num_tokens(modality)} tokens visible")
    return options, trainer


def main() -> int:
    return run_script(prepare, "python examples/reconstruct.py --model {folder} CLIP")


if __name__ == "__main__":
    sys.exit(main())
