"""Fine-tunes an audio-visual classifier on a benchmark or on a folder of your own videos.

    # your own videos: sub-folders named after the classes, or a CSV with the columns file,label[,start,end]
    python examples/finetune_classification.py --data my_videos/ --from_vit google/vit-base-patch16-224-in21k \
        --num_frames 8 --span 8 --output_dir runs/mine --num_train_epochs 10

    # a benchmark from a folder of its shards or a Hub repository, with a published recipe; flags override its values
    python -m hf_avfusion.training.recipes                  # lists the recipes
    python examples/finetune_classification.py --recipe mbt/vggsound --data vggsound --source DIR --output_dir runs/vggsound

    # the same on a small machine: batches of 64 as published, accumulated from 4 clips at a time; a smaller model with fewer
    # and smaller frames
    ... --per_device_train_batch_size 4 --from_vit none --size small --image_size 112 --num_frames 8 --span 8

    # from a pretrained AV-MAE (pretrain_avmae.py): with its own encoder, as a linear probe, from audio alone, or into MBT
    ... --model runs/mae
    ... --model runs/mae --config '{"freeze_encoder": true}'
    ... --model runs/mae --config '{"modalities": ["audio"]}'
    ... --from_avmae runs/mae --config '{"fusion_layer": 8}'

    # event localisation: the class of each second of AVE's 10 s clips; the model sees and hears the whole clip
    ... --model runs/mae --data ave --source DIR --label_columns events --num_segments 10 --span 10 --audio_seconds 10

    # LAVISH: adapters on a frozen backbone; the run's checkpoints hold adapters and head (docs/adapters.md)
    ... --recipe lavish/ave --data ave --source DIR                             # the class of each second, Swin-V2
    ... --recipe lavish/ucf101 --data ucf101 --variant split1 --source DIR      # the class of a clip, VideoMAE

`--model` names an architecture (for a new model of `--size`, or one initialised `--from_vit`) or a checkpoint (a folder or a
Hub id). A checkpoint gets a new head if the number of labels differs. The script also accepts every option of transformers'
Trainer. It saves the model and its processor in `--output_dir`, and all settings in `recipe.json` there. To resume a stopped
run, add `--resume_from_checkpoint OUTPUT_DIR/checkpoint-N`, or `true` for the last complete checkpoint.
"""

import sys

from hf_avfusion.training.recipes.options import ClassificationOptions as Options
from hf_avfusion.training.recipes.options import check_arguments

if __name__ == "__main__":
    check_arguments(Options)  # wrong arguments are answered before the imports below, which take seconds

from rich import print

from hf_avfusion.tasks import task_of_config
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building_runs import RunData, build_run, describe_model, run_script
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.training.trainer import AVTrainer


def prepare() -> tuple[Options, AVTrainer]:
    """Loads and checks everything that training needs, so that wrong arguments fail early."""
    # Adds the flags of `RecipeOptions`: --recipe, --model, --num_frames, --mixup_alpha, ...
    run, options, args = parse_with_recipe(Options, AVTrainingArguments)
    task = task_of_config(options)  # event localisation with --num_segments
    data = RunData.load(options, args)  # undecoded
    columns = options.label_columns or list(data.trained.record.label_columns[:1] if data.trained.record else ["label"])
    trainer = build_run(
        task, run, options, args, data, columns,
        config=options, balance=options.balance_labels, modality_dropout=options.modality_dropout,
    )  # fmt: skip
    print(f"{describe_model(trainer.model)}, {trainer.model.config.num_labels} classes of {columns}")
    return options, trainer


def main() -> int:
    return run_script(prepare, "python examples/predict.py --model {folder} CLIP")


if __name__ == "__main__":
    sys.exit(main())
