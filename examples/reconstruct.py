"""Reconstructs your clips with a pretrained masked autoencoder and draws one PNG per clip: original, masked, reconstruction.

    python examples/reconstruct.py --model runs/mae clip.mp4 more/clips/
    python examples/reconstruct.py --model runs/mae clip.mp4 --video_mask_ratio 0.75 --tracks video --seed 3

A checkpoint is a folder that `pretrain_avmae.py` wrote, or the id of a Hub repository. Visible patches are pasted into the
reconstruction; `--paste False` shows the prediction everywhere. Unreadable files are listed at the end with the reason; the exit
code is 1 if no file was readable.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hf_avfusion.arguments import argument_parser, check_at_least, check_checkpoint, check_device
from hf_avfusion.media.modalities import MODALITIES


@dataclass
class Options:
    model: str = field(metadata={"help": "Checkpoint folder or Hub repository."})
    output: str = field(default="reconstructions", metadata={"help": "Folder for the pictures."})
    seed: int = field(default=0, metadata={"help": "Seed of the masks."})
    paste: bool = field(default=True, metadata={"help": "Show the original for visible patches."})
    tracks: list[str] | None = field(
        default=None,
        metadata={"help": "Use only this track: video or audio; default: both.", "choices": list(MODALITIES)},
    )
    video_mask_ratio: float | None = field(
        default=None, metadata={"help": "Share of masked video patches; default: the checkpoint's."}
    )
    audio_mask_ratio: float | None = field(
        default=None, metadata={"help": "Share of masked audio patches; default: the checkpoint's."}
    )
    start: float | None = field(default=None, metadata={"help": "Start of the clip in the file, in seconds."})
    end: float | None = field(default=None, metadata={"help": "End of the clip in the file, in seconds."})
    device: str | None = field(
        default=None, metadata={"help": "Device of the model; default: cuda, or cpu without a GPU."}
    )

    def __post_init__(self) -> None:
        for name in ("video_mask_ratio", "audio_mask_ratio"):
            if (ratio := getattr(self, name)) is not None and not 0 < ratio < 1:
                raise ValueError(f"--{name} must lie between 0 and 1, got {ratio}")
        check_at_least(0, start=self.start, end=self.end)
        check_device(self.device)
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
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForPreTraining, AutoProcessor

from hf_avfusion.data.benchmarks.folders import media_files
from hf_avfusion.media.reader import MediaError
from hf_avfusion.models.shared.loaded_weights import load_whole
from hf_avfusion.visualization.reconstruction import draw_file_reconstruction


def main() -> int:
    options, names = parse()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()
    clips = media_files(names)
    if not clips:
        console.print(f"no media files in {', '.join(names)}", markup=False)
        return 1
    Path(options.output).mkdir(parents=True, exist_ok=True)

    processor = AutoProcessor.from_pretrained(options.model)
    ratios = {f"{m}_mask_ratio": getattr(options, f"{m}_mask_ratio") for m in MODALITIES}
    ratios = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    try:
        model = load_whole(AutoModelForPreTraining, options.model, **ratios).eval().to(device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    times = {name: getattr(options, name) for name in ("start", "end") if getattr(options, name) is not None}
    tracks = {} if options.tracks is None else {"tracks": tuple(options.tracks)}

    table, skipped, stems = Table("clip", "video loss", "audio loss", "picture"), {}, Counter()
    for clip in track(clips, "reconstructing", console=console, disable=not console.is_terminal):
        stems[clip.stem] += 1  # clips of the same name from different folders are numbered
        name = clip.stem if stems[clip.stem] == 1 else f"{clip.stem}-{stems[clip.stem]}"
        picture = Path(options.output) / f"{name}.png"
        try:
            made = draw_file_reconstruction(
                model, processor, str(clip), picture,
                reading={**times, **tracks}, seed=options.seed, keep_visible=options.paste,
            )  # fmt: skip
            losses = [f"{made.losses[m]:.4f}" if m in made.losses else "" for m in MODALITIES]
            table.add_row(clip.name, *losses, str(picture))
        except (MediaError, FileNotFoundError) as error:
            skipped[clip] = str(error)
    if table.rows:
        console.print(table)
    for clip, reason in skipped.items():
        console.print(f"skipped {clip}: {reason.removeprefix(f'{clip}: ')}", style="yellow", markup=False)
    return 0 if table.rows else 1


if __name__ == "__main__":
    sys.exit(main())
