"""AVDigits, a small benchmark of real recordings: spoken digits, each with an image of the handwritten digit.

    python -m hf_avfusion.data.avdigits --speech DIR --output DIR2

DIR is any folder with `<digit>_<speaker>_<n>.wav` (the layout of Jakobovski/free-spoken-digit-dataset). The images are the
1,797 of scikit-learn (8 x 8 pixels, 10 digits). They are paired by label, like in AV-MNIST. No speaker and no image is in
both splits. The columns are clip_id, video {bytes, path} (MP4), start, end (s), label, speaker.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...arguments import OneLineErrors
from ...files import atomic_path
from ..benchmarks.folders import files_below
from ..benchmarks.loading import row_features
from ..benchmarks.records import BENCHMARKS
from .sounding_shapes import ROW_GROUP, ROWS_PER_SHARD, encode

SPLITS = ("train", "test")
NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav", re.IGNORECASE)
FRAME_RATE = 10.0  # frames per s; all frames of a clip show the same image
TEST_IMAGES = 1 / 3  # share of each digit's images


@dataclass(frozen=True)
class Recording:
    path: Path
    digit: int
    speaker: str


def find_recordings(folder: str | os.PathLike) -> list[Recording]:
    """Finds all `<digit>_<speaker>_<n>.wav` in a folder, at any depth, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder, or it has none.
        ValueError: a WAV file has another name.
    """
    if not Path(folder).is_dir():
        what = "is a file" if Path(folder).exists() else "does not exist"
        raise FileNotFoundError(
            f"speech (--speech) {folder} {what}; pass a folder with recordings that are named <digit>_<speaker>_<n>.wav, such as"
            " the folder `recordings` of a clone of github.com/Jakobovski/free-spoken-digit-dataset"
        )
    found = []
    for path in sorted(files_below(Path(folder)), key=lambda path: (path.name, path)):
        if path.suffix.lower() != ".wav":
            continue
        match = NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(
                f"{path}: expected a name like 7_jackson_32.wav (<digit>_<speaker>_<n>.wav); rename it or move it out"
            )
        found.append(Recording(path, int(match[1]), match[2]))
    if not found:
        raise FileNotFoundError(
            f"{folder} contains no spoken digits (<digit>_<speaker>_<n>.wav); pass the folder of the recordings (--speech)"
        )
    return found


def split_speakers(recordings: Sequence[Recording], test_speakers: Sequence[str] | None = None) -> tuple[str, ...]:
    """Checks the speakers of the test split; by default, they are the last third of all speakers, sorted by name."""
    speakers = sorted({recording.speaker for recording in recordings})
    if test_speakers is None:
        test_speakers = speakers[-max(len(speakers) // 3, 1) :]
    unknown = set(test_speakers) - set(speakers)
    if unknown or not 0 < len(set(test_speakers)) < len(speakers):
        raise ValueError(
            f"test_speakers must be some, not all, of {', '.join(speakers)}; got {', '.join(test_speakers) or 'none'}"
        )
    return tuple(test_speakers)


def _images(split: str, seed: int) -> dict[int, list[int]]:
    """Returns the shuffled numbers of scikit-learn's images per digit; the last third of the images is for testing."""
    from sklearn.datasets import load_digits

    targets = load_digits().target
    numbers = {}
    for digit in range(10):
        indices = np.flatnonzero(targets == digit)
        first_test = len(indices) - round(len(indices) * TEST_IMAGES)
        chosen = indices[:first_test] if split == "train" else indices[first_test:]
        order = np.random.default_rng([seed, SPLITS.index(split), digit]).permutation(len(chosen))
        numbers[digit] = chosen[order].tolist()
    return numbers


def resize_digit(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes an image of scikit-learn (float [8, 8], 0..16) to uint8 [side, side, 3], light on black, bicubic."""
    from PIL import Image

    grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    return np.repeat(np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC))[..., None], 3, axis=2)


def _rows(recordings: Sequence[Recording], split: str, side: int, seed: int) -> Iterator[dict[str, Any]]:
    from sklearn.datasets import load_digits

    from ...media.mono import to_mono  # imports PyTorch
    from ...media.reader import probe, read_clip

    images, numbers, used = load_digits().images, _images(split, seed), defaultdict(int)
    for recording in recordings:
        choices = numbers[recording.digit]
        number = choices[used[recording.digit] % len(choices)]  # every image is used once before any is repeated
        used[recording.digit] += 1
        clip = read_clip(recording.path, audio_window=(0.0, probe(recording.path).duration + 1.0))  # the whole file
        waveform = to_mono(clip.waveform).numpy()
        seconds = len(waveform) / clip.sampling_rate
        frame = resize_digit(images[number], side)
        frames = np.repeat(frame[None], max(math.ceil(seconds * FRAME_RATE), 1), axis=0)
        clip_id = f"{recording.path.stem}-image{number}"
        yield {
            "clip_id": clip_id,
            "video": {"bytes": encode(frames, waveform, FRAME_RATE, clip.sampling_rate), "path": f"{clip_id}.mp4"},
            "start": 0.0,
            "end": seconds,
            "label": recording.digit,
            "speaker": recording.speaker,
        }


def render(
    speech: str | os.PathLike,
    output: str | os.PathLike,
    *,
    side: int = 64,
    seed: int = 0,
    test_speakers: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[str, list[Path]]:
    """Renders shards `<split>-0000k-of-0000n.parquet` into a folder without shards.

    Args:
        speech: folder of the spoken digits.
        output: folder of the shards, created if missing.
        side: width and height of the video in pixels, even.
        seed: seed of the pairing of recordings and images.
        test_speakers: speakers of the test split; by default, the last third of all speakers, sorted by name.
        progress: show a progress bar.

    Returns:
        the paths of the shards of each split.

    Raises:
        ValueError: a file name, a speaker or `side` is invalid.
        FileExistsError: `output` contains shards.
        FileNotFoundError: there are no spoken digits.
        MediaError: an audio file does not decode.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm.auto import tqdm

    if side < 8 or side % 2:
        raise ValueError(f"side must be even and at least 8, got {side}")
    recordings = find_recordings(speech)
    held = split_speakers(recordings, test_speakers)
    folder = Path(output)
    if any(folder.glob("*.parquet")):
        raise FileExistsError(f"{folder} already contains parquet shards; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    schema = row_features(BENCHMARKS["avdigits"]).arrow_schema
    shards: dict[str, list[Path]] = {}
    with tqdm(total=len(recordings), unit="clip", desc="AVDigits", disable=not progress) as bar:
        for split in SPLITS:
            chosen = [recording for recording in recordings if (recording.speaker in held) == (split == "test")]
            total = -(-len(chosen) // ROWS_PER_SHARD)
            rows = _rows(chosen, split, side, seed)
            shards[split] = [folder / f"{split}-{number:05d}-of-{total:05d}.parquet" for number in range(total)]
            for number, path in enumerate(shards[split]):
                left = min(ROWS_PER_SHARD, len(chosen) - number * ROWS_PER_SHARD)
                with atomic_path(path) as partial, pq.ParquetWriter(partial, schema, compression="none") as writer:
                    for start in range(0, left, ROW_GROUP):
                        group = [next(rows) for _ in range(min(ROW_GROUP, left - start))]
                        writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=ROW_GROUP)
                        bar.update(len(group))
    return shards


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineErrors(
        prog="python -m hf_avfusion.data.avdigits",
        description="Render spoken digits with images of handwritten digits to parquet shards.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--speech", required=True, help="folder of <digit>_<speaker>_<n>.wav")
    parser.add_argument("--output", required=True, help="folder of the shards")
    parser.add_argument("--side", type=int, default=64, help="width and height of the video in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pairing of recordings and images")
    parser.add_argument("--test_speakers", nargs="+", default=None, help="by default, the last third, sorted by name")
    options = parser.parse_args(arguments)
    try:
        shards = render(**vars(options))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for split, paths in shards.items():
        print(f"{split}: {len(paths)} shard(s) in {paths[0].parent}")


if __name__ == "__main__":
    main()
