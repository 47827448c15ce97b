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

from hf_avfusion.tasks import TASKS
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building_runs import DataOptions, RunData, build_run, train_and_evaluate
from hf_avfusion.training.recipes.command_line import REFUSALS, parse_with_recipe, refuse
from hf_avfusion.training.trainer import AVTrainer


@dataclass
class Options(DataOptions):
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "The label; several columns make several heads (such as verb noun)."}
    )
    num_segments: int | None = field(
        default=None,
        metadata={
            "help": "Event localisation: the label column holds a class for each of so many equal parts of a clip."
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
    """Everything before the training, so that wrong arguments stop the script before work is lost."""
    # Adds the flags of `RecipeOptions`: --recipe, --model, --num_frames, --mixup_alpha, ...
    run, options, args = parse_with_recipe(Options, AVTrainingArguments)
    task = TASKS["classification" if options.num_segments is None else "event_localization"]
    data = RunData.load(options)  # undecoded
    columns = options.label_columns or list(data.trained.record.label_columns[:1] if data.trained.record else ["label"])
    trainer = build_run(
        task, run, options, args, data, columns,
        config=options, balance=options.balance_labels, modality_dropout=options.modality_dropout,
    )  # fmt: skip
    model = trainer.model
    print(
        f"{type(model).__name__}: {model.num_parameters():,} parameters, {model.config.num_labels} classes of {columns}"
    )
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
    print(f"saved in {folder}; try: python examples/predict.py --model {folder} CLIP")
    return 0


if __name__ == "__main__":
    sys.exit(main())
