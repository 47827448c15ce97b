"""Fine-tunes LAVISH to answer questions about clips, such as those of MUSIC-AVQA, from a backbone of transformers.

    python examples/finetune_question_answering.py --data music_avqa --source DIR --output_dir runs/answers \
        --from_backbone microsoft/swinv2-large-patch4-window12-192-22k --eval_split validation

    # on the synthetic benchmark, whose clips last 2 s
    python -m hf_avfusion.data.sounding_shapes --output shapes
    ... --data sounding_shapes --source shapes --num_segments 2 --from_backbone my_vit/

    # with the grounding modules of MUSIC-AVQA's own checkpoint, as published
    ... --from_grounding grounding_gen_best.pt

Rows have the columns `question`, `answer` (one of a fixed list) and, for scores by type, `question_type`. The words of the
training questions are the vocabulary, which is saved with the processor; MUSIC-AVQA has its published one. Clips of other videos in
a batch are the negatives of the match loss, so a batch needs 2 clips or more for it. `--model` names an architecture or a
checkpoint. The script also accepts every option of transformers' Trainer. It saves the model and its processor in `--output_dir`,
and all settings in `recipe.json` there. To resume a stopped run, add `--resume_from_checkpoint true`.
"""

import sys

from hf_avfusion.training.recipes.options import QuestionOptions as Options
from hf_avfusion.training.recipes.options import check_arguments

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
    run, options, args = parse_with_recipe(Options, AVTrainingArguments, task="question_answering")
    data = RunData.load(options, args)  # undecoded
    trainer = build_run(
        TASKS["question_answering"], run, options, args, data, ["answer"], modality_dropout=options.modality_dropout
    )
    model = trainer.model
    print(f"{describe_model(model)}, {model.config.num_labels} answers, {model.config.vocab_size} words")
    return options, trainer


def main() -> int:
    return run_script(prepare, "python examples/predict.py --model {folder} CLIP --text 'How many ...?'")


if __name__ == "__main__":
    sys.exit(main())
