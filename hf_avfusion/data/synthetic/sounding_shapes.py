"""SoundingShapes, a synthetic benchmark: renders H.264 + AAC clips to parquet shards from a seed.

    python -m hf_avfusion.data.sounding_shapes --output DIR --rule xor --num_classes 4 --num_train 3000

Coloured shapes move, and each pulses with its sound. With the rule `pair`, the label is the pair of shape and sound; each
modality determines half of it. With the rule `xor`, the label is (shape + sound) mod K. Shape and sound are drawn
independently and exactly balanced, so either modality alone, and any average of two unimodal predictions, stays at chance;
only a model that fuses them can predict the label. (A small model trained only on this label memorises the clips. It learns
the label if a shape head and a sound head are trained with it.)

The columns (see `features`) are clip_id, video {bytes, path} (MP4, undecoded), start, end (s), label, shape, sound
(ClassLabel), events (one per second, background last), masks (PNG of the sounding shape at the middle of each second),
question_type, question, answer, caption.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...arguments import OneLineErrors
from ...files import atomic_path
from .sounding_scenes import (
    QUESTION_TYPES,
    VERSION,
    Scene,
    SceneSettings,
    caption,
    draw_frames,
    events,
    make_question,
    masks,
    sample_scene,
    synthesise,
)

SPLITS = ("train", "validation", "test")
SETTINGS_FILE = "sounding_shapes.json"
ROW_GROUP = 32  # rows; small groups need only small range reads when streaming
ROWS_PER_SHARD = 512


@dataclass(frozen=True)
class RenderSettings:
    """The settings that `render` stores with its shards; a folder has only one rendering."""

    scene: SceneSettings
    seed: int = 0
    crf: int = 18
    rows_per_shard: int = ROWS_PER_SHARD

    def __post_init__(self):
        if not 0 <= self.crf <= 40:
            raise ValueError(f"crf must lie in 0 (lossless) to 40, got {self.crf}")
        if self.rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be at least 1, got {self.rows_per_shard}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


def features(settings: SceneSettings) -> Any:
    """Returns the `datasets.Features` of a row; every shard stores them."""
    from datasets import ClassLabel, Features, Image, List, Value, Video

    return Features(
        {
            "clip_id": Value("string"),
            "video": Video(decode=False),
            "start": Value("float32"),
            "end": Value("float32"),
            "label": ClassLabel(names=settings.label_names),
            "shape": ClassLabel(names=settings.shape_names),
            "sound": ClassLabel(names=settings.sound_names),
            "events": List(ClassLabel(names=settings.event_names)),
            "masks": List(Image(decode=False)),
            "question_type": ClassLabel(names=list(QUESTION_TYPES)),
            "question": Value("string"),
            "answer": ClassLabel(names=settings.answer_names),
            "caption": Value("string"),
        }
    )


def _generator(seed: int, split: str, *rest: int) -> np.random.Generator:
    # The split is part of the seed, so no clip appears in two splits.
    return np.random.default_rng([seed, SPLITS.index(split), *rest])


def clip_classes(settings: SceneSettings, seed: int, split: str, index: int) -> tuple[int, int]:
    """Returns shape and sound of a clip; each block of K*K clips has every pair once, in a seeded order."""
    pairs = settings.num_classes**2
    block, place = divmod(index, pairs)
    pair = _generator(seed, split, 0, block).permutation(pairs)[place]
    return divmod(int(pair), settings.num_classes)


def make_scene(settings: SceneSettings, seed: int, split: str, index: int) -> Scene:
    """Samples the scene of one clip; it depends only on the arguments."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    shape, sound = clip_classes(settings, seed, split, index)
    return sample_scene(settings, shape, sound, _generator(seed, split, 1, index))


def encode(frames: np.ndarray, waveform: np.ndarray, frame_rate: float, sampling_rate: int, crf: int = 18) -> bytes:
    """Encodes a clip as MP4 with one H.264 and one AAC track.

    Args:
        frames: uint8 [T, height, width, 3], even height and width.
        waveform: float32 [samples], mono, -1..1.
        frame_rate: frames per second.
        sampling_rate: Hz.
        crf: x264's constant rate factor.
    """
    import av

    buffer = io.BytesIO()
    # bitexact writes no library versions, so the bytes depend only on the content and the encoders.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # ultrafast and zerolatency (no B-frames, look-ahead, CABAC or deblocking) are the fastest to encode and decode.
        video = container.add_stream(
            "libx264",
            rate=Fraction(frame_rate).limit_denominator(1001),
            options={"preset": "ultrafast", "tune": "zerolatency", "crf": str(crf)},
        )
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        # The fast coder takes a quarter of the default coder's time and, at this rate, is closer to the original (30 dB
        # versus 22 dB).
        audio = container.add_stream("aac", rate=sampling_rate, layout="mono", options={"aac_coder": "fast"})
        audio.bit_rate = 3 * sampling_rate
        for stream in (video, audio):
            stream.codec_context.flags |= int(av.codec.context.Flags.bitexact)

        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="fltp", layout="mono")
        samples.sample_rate, samples.pts = sampling_rate, 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode())
    return buffer.getvalue()


def _png(mask: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def render_clip(settings: RenderSettings, split: str, index: int) -> dict[str, Any]:
    """Renders one row, with labels as integers, and `video` and `masks` as {bytes, path}."""
    scene = make_scene(settings.scene, settings.seed, split, index)
    own, main = settings.scene, scene.dominating
    kind, question, answer = make_question(scene, _generator(settings.seed, split, 2, index))
    clip_id = f"{split}-{index:06d}"
    return {
        "clip_id": clip_id,
        "video": {
            "bytes": encode(draw_frames(scene), synthesise(scene), own.frame_rate, own.sampling_rate, settings.crf),
            "path": f"{clip_id}.mp4",
        },
        "start": 0.0,
        "end": float(own.duration),
        "label": own.label(main.shape, main.sound),
        "shape": main.shape,
        "sound": main.sound,
        "events": events(scene),
        "masks": [{"bytes": _png(mask), "path": None} for mask in masks(scene)],
        "question_type": QUESTION_TYPES.index(kind),
        "question": question,
        "answer": own.answer_names.index(answer),
        "caption": caption(scene),
    }


def _render_group(job: tuple[str, int, int], settings: RenderSettings) -> list[dict[str, Any]]:
    split, first, last = job
    return [render_clip(settings, split, index) for index in range(first, last)]


def _groups(
    jobs: list[tuple[str, int, int]], settings: RenderSettings, num_proc: int
) -> Iterator[list[dict[str, Any]]]:
    work = partial(_render_group, settings=settings)
    if num_proc == 1 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    # The children use only numpy, PyAV and Pillow. With fork, they need not import torch, which takes seconds.
    method = "fork" if sys.platform == "linux" else "spawn"
    # Ctrl-C also reaches the children, but the parent ends them.
    ignore_interrupts = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context(method).Pool(min(num_proc, len(jobs)), signal.signal, ignore_interrupts) as pool:
        yield from pool.imap(work, jobs)


def render(
    output: str | os.PathLike,
    *,
    rule: str = "xor",
    num_classes: int = 4,
    num_train: int = 3000,
    num_validation: int = 320,
    num_test: int = 640,
    seed: int = 0,
    num_proc: int | None = None,
    crf: int = 18,
    rows_per_shard: int = ROWS_PER_SHARD,
    overwrite: bool = False,
    progress: bool = True,
    **scene: Any,
) -> dict[str, list[Path]]:
    """Renders the benchmark into `output` as `<split>-00000-of-0000n.parquet`.

    Rendering can be stopped at any time. A repeated call keeps the complete shards and renders the rest. A folder that
    contains a rendering with other settings is an error unless `overwrite`.

    Args:
        output: the folder, created if missing.
        rule, num_classes, **scene: see `SceneSettings` (width, height, duration, frame_rate, sampling_rate,
            distractors).
        num_train, num_validation, num_test: clips per split; a split with 0 clips is not written. Multiples of K*K
            balance the labels exactly.
        seed: with the split and the clip's number, it determines every clip. A larger number of clips does not change
            the first ones.
        num_proc: number of processes; by default, one per core.
        crf: x264's constant rate factor.
        rows_per_shard: clips per parquet file.
        overwrite: replace a rendering with other settings.
        progress: show a progress bar.

    Returns:
        the paths of the shards of each split.

    Raises:
        ValueError: a setting is out of range.
        FileExistsError: `output` contains a rendering with other settings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm.auto import tqdm

    settings = RenderSettings(SceneSettings(rule=rule, num_classes=num_classes, **scene), seed, crf, rows_per_shard)
    counts = dict(zip(SPLITS, (num_train, num_validation, num_test)))
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"num_{split} must not be negative, got {count}")
    if not any(counts.values()):
        raise ValueError("nothing to render: num_train, num_validation and num_test are all 0")
    num_proc = num_proc if num_proc is not None else usable_cores()
    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}")
    folder = Path(output)
    shards = _claim(folder, settings, counts, overwrite)

    schema = features(settings.scene).arrow_schema
    missing = [(split, n, path) for split in SPLITS for n, path in enumerate(shards[split]) if not path.exists()]
    jobs, sizes = [], []
    for split, number, _ in missing:
        first = number * rows_per_shard
        last = min(first + rows_per_shard, counts[split])
        chunks = [(split, at, min(at + ROW_GROUP, last)) for at in range(first, last, ROW_GROUP)]
        jobs += chunks
        sizes.append(len(chunks))
    total = sum(last - first for _, first, last in jobs)
    groups = _groups(jobs, settings, num_proc)
    with tqdm(total=total, unit="clip", desc=f"SoundingShapes ({rule})", disable=not progress) as bar:
        for (split, _, path), size in zip(missing, sizes):
            bar.set_postfix_str(split)
            # H.264 does not compress further.
            with (
                atomic_path(path) as partial_path,
                pq.ParquetWriter(partial_path, schema, compression="none") as writer,
            ):
                for _ in range(size):
                    rows = next(groups)
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=ROW_GROUP)
                    bar.update(len(rows))
    return {split: paths for split, paths in shards.items() if paths}


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _claim(folder: Path, settings: RenderSettings, counts: Mapping[str, int], overwrite: bool) -> dict[str, list[Path]]:
    """Checks the folder's settings, writes the settings file, deletes shards to overwrite, and returns the shard paths."""
    record = {"version": VERSION, **asdict(settings), "num_clips": dict(counts)}
    note = folder / SETTINGS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = json.loads(note.read_text()) if note.exists() else None
    except ValueError:
        found = "not readable"  # treated as other settings
    if found is not None and found != record:
        if not overwrite:
            raise FileExistsError(
                f"{folder} contains a SoundingShapes rendering with other settings (see {note.name}). Choose another"
                " folder, or pass overwrite=True (--overwrite) to replace it."
            )
    elif found is None and any(folder.glob("*.parquet")) and not overwrite:
        raise FileExistsError(
            f"{folder} contains parquet files that are not a SoundingShapes rendering. Choose another folder."
        )
    if overwrite:
        for split in SPLITS:
            for old in folder.glob(f"{split}-*-of-*.parquet"):
                old.unlink()
    note.write_text(json.dumps(record, indent=2) + "\n")
    shards = {}
    for split, count in counts.items():
        number = -(-count // settings.rows_per_shard)
        shards[split] = [folder / f"{split}-{n:05d}-of-{number:05d}.parquet" for n in range(number)]
    return shards


def main(arguments: list[str] | None = None) -> None:
    scene = SceneSettings()
    parser = OneLineErrors(
        prog="python -m hf_avfusion.data.sounding_shapes",
        description="Render the SoundingShapes benchmark to parquet shards.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", required=True, help="folder of the shards")
    parser.add_argument(
        "--rule",
        choices=("xor", "pair"),
        default=scene.rule,
        help="xor: (shape + sound) mod K; pair: one class per pair",
    )
    parser.add_argument(
        "--num_classes", type=int, default=scene.num_classes, help="K, the number of shapes and of sounds"
    )
    parser.add_argument("--num_train", type=int, default=3000)
    parser.add_argument("--num_validation", type=int, default=320)
    parser.add_argument("--num_test", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_proc", type=int, default=None, help="number of processes; by default, one per core")
    parser.add_argument("--width", type=int, default=scene.width, help="pixels")
    parser.add_argument("--height", type=int, default=scene.height, help="pixels")
    parser.add_argument("--duration", type=int, default=scene.duration, help="whole seconds")
    parser.add_argument("--frame_rate", type=float, default=scene.frame_rate, help="frames per second")
    parser.add_argument("--sampling_rate", type=int, default=scene.sampling_rate, help="Hz")
    parser.add_argument(
        "--distractors",
        type=int,
        default=scene.distractors,
        help="number of smaller shapes in addition to the dominating one",
    )
    parser.add_argument("--crf", type=int, default=18, help="x264 constant rate factor")
    parser.add_argument("--rows_per_shard", type=int, default=ROWS_PER_SHARD)
    parser.add_argument("--overwrite", action="store_true", help="replace a rendering with other settings")
    options = vars(parser.parse_args(arguments))
    try:
        shards = render(**options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; repeat the command to continue after the complete shards\n")
    for split, paths in shards.items():
        size = sum(path.stat().st_size for path in paths) / 1e6
        print(f"{split}: {len(paths)} shard(s), {size:.1f} MB in {paths[0].parent}")


if __name__ == "__main__":
    main()
