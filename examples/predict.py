"""Classifies your clips: takes media files or folders and prints a table of the most probable labels.

    python examples/predict.py --model CHECKPOINT clip.mp4 more/clips/
    python examples/predict.py --model CHECKPOINT clip.mp4 --text "How many shapes are there?" "Which shape is the largest?"
    python examples/predict.py --model org/mbt-vggsound clips/ --top_k 3 --output predictions.jsonl --pictures seen/

A checkpoint is a folder written by `save_pretrained` (or by the other examples), or the id of a Hub repository.
`--text` takes questions for a checkpoint that answers them, about every clip.
Unreadable files are listed at the end with the reason; the exit code is 1 if no file was readable. With `--output`,
one JSON line is written per clip, as soon as it is done.
"""

import json
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from hf_avfusion.arguments import (
    argument_parser,
    check_at_least,
    check_at_most,
    check_checkpoint,
    check_device,
    check_output_file,
    check_output_folder,
)

MAX_VIEWS = 1000


@dataclass
class Options:
    model: str = field(metadata={"help": "Checkpoint folder or Hub repository."})
    text: list[str] | None = field(
        default=None, metadata={"help": "Questions about every clip, for a checkpoint that answers questions."}
    )
    top_k: int = field(default=5, metadata={"help": "Labels per clip (and head or question)."})
    num_views: int = field(
        default=1, metadata={"help": "Windows per clip, whose logits are averaged; the MBT paper uses 4."}
    )
    output: str | None = field(default=None, metadata={"help": "File for one JSON line per clip."})
    pictures: str | None = field(
        default=None,
        metadata={
            "help": "Folder for one PNG per clip that shows where the model attends, or, for event localisers without attention "
            "maps (LAVISH), when which event happens."
        },
    )
    device: str | None = field(
        default=None, metadata={"help": "Device of the model; default: cuda, or cpu without a GPU."}
    )

    def __post_init__(self) -> None:
        check_at_least(1, top_k=self.top_k, num_views=self.num_views)
        check_at_most(MAX_VIEWS, num_views=self.num_views)
        check_device(self.device)
        check_output_file("--output", self.output)
        check_output_folder("--pictures", self.pictures)
        check_checkpoint("--model", self.model)


def parse() -> tuple[Options, list[str]]:
    parser = argument_parser(Options, description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", help="Media files, and folders to search for them.")
    options, positional = parser.parse_args_into_dataclasses()
    return options, positional.clips


if __name__ == "__main__":
    parse()  # wrong arguments are answered before the imports below, which take seconds

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from transformers import AutoProcessor

import hf_avfusion  # noqa: F401 (registers every architecture)
from hf_avfusion.data.benchmarks.folders import media_files
from hf_avfusion.evaluation.adapter_checkpoints import config_of, load_any
from hf_avfusion.evaluation.views import check_views, choose_protocol
from hf_avfusion.media.modalities import MODEL_INPUTS
from hf_avfusion.media.reader import MediaError
from hf_avfusion.tasks import task_of_config
from hf_avfusion.visualization.attention import explain
from hf_avfusion.visualization.timeline import explain_events
from hf_avfusion.visualization.token_layouts import has_token_layout, token_layout


def as_line(clip: Path, heads: dict | None, reason: str | None) -> dict:
    """The entry of one clip in the `--output` file."""
    if heads is None:
        return {"clip": str(clip), "skipped": reason}
    return {"clip": str(clip), "predictions": heads}


def main() -> int:
    options, names = parse()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()
    clips = media_files(names)
    if not clips:
        console.print(f"no media files in {', '.join(names)}", markup=False)
        return 1

    try:
        processor = AutoProcessor.from_pretrained(options.model)
        config = config_of(options.model)
        task = task_of_config(config)
        check_views(
            choose_protocol(num_views=options.num_views), task, config, ("--num_views", "crops", "aggregation"), False
        )
        if bool(options.text) != task.takes_text:
            raise ValueError(
                f"--text: {options.model} is a model for {task.title}, which takes no text: leave it out"
                if options.text
                else f"{options.model} is a model for {task.title}: ask questions about the clips with --text"
            )
        if options.text:
            processor.encode_questions(options.text)  # wrong questions fail before the first clip is read
        model = load_any(task.auto_class, options.model).eval().to(device)
        timelines = task.has_timeline and not has_token_layout(model)
        if options.pictures and not timelines:
            token_layout(model)  # raises for a model without attention maps, before the first clip is read
    except (ValueError, OSError) as error:
        text, named = " ".join(str(error).split()), f"--model {options.model}: " if isinstance(error, OSError) else ""
        print(f"error: {named}{text}", file=sys.stderr)
        return 1

    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    if options.pictures:
        Path(options.pictures).mkdir(parents=True, exist_ok=True)
    predictions, skipped, stems = {}, {}, Counter()
    text = {"text": [options.text]} if options.text else {}
    named_by = {"texts": options.text} if options.text else {}
    with open(options.output, "w") if options.output else nullcontext() as lines:
        for clip in track(clips, "predicting", console=console, disable=not console.is_terminal):
            try:
                inputs = processor(videos=str(clip), num_views=options.num_views, **text, return_tensors="pt")
                if absent := [each for each in task.needed_modalities if MODEL_INPUTS[each] not in inputs]:
                    raise MediaError(str(clip), f"has no {' and no '.join(absent)}, which {task.title} needs")
                with torch.no_grad():
                    logits = model(**inputs.to(device)).logits.float().cpu()  # averaged over views, as published
                predictions[clip] = task.answer(model.config, logits, top_k=options.top_k, **named_by)
                if options.pictures:
                    stems[clip.stem] += 1  # clips of the same name from different folders are numbered
                    name = clip.stem if stems[clip.stem] == 1 else f"{clip.stem}-{stems[clip.stem]}"
                    draw = explain_events if timelines else explain
                    draw(model, processor, str(clip), path=Path(options.pictures) / f"{name}.png")
            except (MediaError, FileNotFoundError) as error:
                skipped[clip] = str(error)
            if lines is not None:
                lines.write(json.dumps(as_line(clip, predictions.get(clip), skipped.get(clip))) + "\n")
                lines.flush()

    places = max((len(labels) for heads in predictions.values() for labels in heads.values()), default=0)
    table = Table("clip", "head", *(f"top {place + 1}" for place in range(places)))
    named = Counter(clip.name for clip in clips)
    for clip, heads in predictions.items():
        shown = escape(str(clip) if named[clip.name] > 1 else clip.name)
        for head, labels in heads.items():
            table.add_row(shown, head, *(f"{escape(best['label'])} [dim]{best['score']:.1%}[/]" for best in labels))
    if predictions:
        console.print(table)
    for clip, reason in skipped.items():
        console.print(f"skipped {clip}: {reason.removeprefix(f'{clip}: ')}", style="yellow", markup=False)
    return 0 if predictions else 1


if __name__ == "__main__":
    sys.exit(main())
