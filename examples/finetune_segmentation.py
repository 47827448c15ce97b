"""Fine-tunes a model that segments what sounds, on a benchmark with masks (AVSBench-S4).

    # AVSBench-S4: frozen Swin-V2-Large, adapters of LAVISH inside the model, masks of the first second in training
    python examples/finetune_segmentation.py --data avsbench_s4 --source DIR --output_dir runs/avs \
        --from_backbone microsoft/swinv2-large-patch4-window12-192-22k --num_segments 5 \
        --config '{"adapter": {"reduction": 4, "num_tokens": 16, "groups": 2}}'

    # rendered clips, whose masks are those of the middle of each second
    python -m hf_avfusion.data.sounding_shapes --output shapes --num_train 256 --num_validation 0 --num_test 64
    python examples/finetune_segmentation.py --data sounding_shapes --source shapes --label_columns masks --num_segments 2 \
        --set window.segment_frame=0.5 ... --output_dir runs/shapes

The masks are a column of lists of pictures: one for each of `--num_segments` equal parts of a clip, or that of the first part
alone. A segment has one frame, and its mask is of this frame: `window.segment_frame` is the place of the frame in its segment
(0.9375, AVSBench's, by default). Evaluation prints mIoU and F-score by AVSBench's rules.

`--model` names an architecture or a checkpoint (a folder or a Hub id). The script also accepts every option of transformers'
Trainer. It saves the model and its processor in `--output_dir`, and all settings in `recipe.json` there. To resume a stopped run,
add `--resume_from_checkpoint OUTPUT_DIR/checkpoint-N`, or `true` for the last complete checkpoint.
"""

import sys
from dataclasses import dataclass, field

from hf_avfusion.training.recipes.options import DataOptions, check_arguments


@dataclass
class Options(DataOptions):
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "The column of masks; default: the benchmark's own, or `masks`."}
    )
    num_segments: int | None = field(
        default=None,
        metadata={"help": "Number of equal parts of a clip, each with a mask; default: the recipe's or checkpoint's."},
    )


if __name__ == "__main__":
    check_arguments(Options)  # wrong arguments are answered before the imports below, which take seconds

from rich import print

from hf_avfusion.tasks import TASKS
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building_runs import RunData, build_run, describe_model, run_script
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.training.trainer import AVTrainer


def prepare() -> tuple[Options, AVTrainer]:
    """Loads and checks everything that training needs, so that wrong arguments fail early."""
    # Adds the flags of `RecipeOptions`: --recipe, --model, --from_backbone, --config, ...
    task = TASKS["segmentation"]
    run, options, args = parse_with_recipe(Options, AVTrainingArguments, task=task.name)
    data = RunData.load(options, args)  # undecoded
    record = data.trained.record
    columns = options.label_columns or task.choose_columns(None, record.columns if record else {}, {})
    trainer = build_run(task, run, options, args, data, columns, config=options)
    config = trainer.model.config
    print(
        f"{describe_model(trainer.model)}, masks of {config.mask_hw[0]} x {config.mask_hw[1]} pixels for {config.num_segments} "
        "segments"
    )
    return options, trainer


def main() -> int:
    return run_script(prepare, "python examples/predict.py --model {folder} CLIP")


if __name__ == "__main__":
    sys.exit(main())
