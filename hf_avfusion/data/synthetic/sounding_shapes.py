"""SoundingShapes, the benchmark the project renders itself: real H.264 + AAC clips in parquet shards, from a seed.

    python -m hf_avfusion.data.sounding_shapes --output DIR --rule xor --num_classes 4 --num_train 3000

Coloured shapes move; each makes a sound with which it pulses. The label is either the shape-sound `pair` (each
modality tells half of it) or, with the `xor` rule, (shape + sound) mod K: shape and sound are drawn independently and
in exact balance, so either modality alone, and any average of what each says alone, stays at chance, and only a model
that fuses them can answer. (A small model given that label alone merely memorises; trained beside a shape head and a
sound head it learns it.)

One row (see `features`): clip_id, video {bytes, path} (MP4, undecoded), start, end (s), label, shape, sound
(ClassLabel), events (one per second, background last), masks (PNG of the sounding shape at the middle of each
second), question_type, question, answer, caption.
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

from hf_avfusion.data.synthetic.sounding_scenes import (
    QUESTION_TYPES,
    VERSION,
    Scene,
    SceneSettings,
    ask,
    caption,
    draw,
    events,
    masks,
    sample_scene,
    synthesise,
)

SPLITS = ("train", "validation", "test")
SETTINGS_FILE = "sounding_shapes.json"
ROW_GROUP = 32  # rows; small groups stream with small range reads
ROWS_PER_SHARD = 512


@dataclass(frozen=True)
class RenderSettings:
    """What `render` writes beside its shards; a folder holds one rendering only."""

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
    """The `datasets.Features` of a row; they are stored in every shard."""
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
    # The split is part of the entropy itself, so no clip of one split can come back in another.
    return np.random.default_rng([seed, SPLITS.index(split), *rest])


def clip_classes(settings: SceneSettings, seed: int, split: str, index: int) -> tuple[int, int]:
    """Shape and sound of a clip: every run of K*K clips goes once through all pairs, in a seeded order."""
    pairs = settings.num_classes**2
    block, place = divmod(index, pairs)
    pair = _generator(seed, split, 0, block).permutation(pairs)[place]
    return divmod(int(pair), settings.num_classes)


def make_scene(settings: SceneSettings, seed: int, split: str, index: int) -> Scene:
    """The scene of one clip, a function of its arguments alone."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    shape, sound = clip_classes(settings, seed, split, index)
    return sample_scene(settings, shape, sound, _generator(seed, split, 1, index))


def encode(frames: np.ndarray, waveform: np.ndarray, frame_rate: float, sampling_rate: int, crf: int = 18) -> bytes:
    """MP4 with one H.264 and one AAC track.

    Args:
        frames: uint8 [T, height, width, 3], even height and width.
        waveform: float32 [samples], mono, -1..1.
        frame_rate: frames per second.
        sampling_rate: Hz.
        crf: x264's constant rate factor.
    """
    import av

    buffer = io.BytesIO()
    # bitexact leaves library versions out of the file, so the bytes depend on nothing but the content and the encoders.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # ultrafast, zerolatency: no B-frames, no look-ahead, no CABAC and no deblocking: the cheapest to write and to
        # read.
        video = container.add_stream(
            "libx264",
            rate=Fraction(frame_rate).limit_denominator(1001),
            options={"preset": "ultrafast", "tune": "zerolatency", "crf": str(crf)},
        )
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        # The fast coder costs a quarter of the default one and, at this rate, is closer to the original (30 dB
        # against 22 dB).
        audio = container.add_stream("aac", rate=sampling_rate, layout="mono", options={"aac_coder": "fast"})
        audio.bit_rate = 3 * sampling_rate
        for stream in (video, audio):
            stream.codec_context.flags |= int(av.codec.context.Flags.bitexact)

        for number, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = number
            container.mux(video.encode(picture))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = sampling_rate, 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return buffer.getvalue()


def _png(mask: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def render_clip(settings: RenderSettings, split: str, index: int) -> dict[str, Any]:
    """One row, labels as integers, `video` and `masks` as {bytes, path}."""
    scene = make_scene(settings.scene, settings.seed, split, index)
    of, main = settings.scene, scene.dominating
    kind, question, answer = ask(scene, _generator(settings.seed, split, 2, index))
    clip_id = f"{split}-{index:06d}"
    return {
        "clip_id": clip_id,
        "video": {
            "bytes": encode(draw(scene), synthesise(scene), of.frame_rate, of.sampling_rate, settings.crf),
            "path": f"{clip_id}.mp4",
        },
        "start": 0.0,
        "end": float(of.duration),
        "label": of.label(main.shape, main.sound),
        "shape": main.shape,
        "sound": main.sound,
        "events": events(scene),
        "masks": [{"bytes": _png(mask), "path": None} for mask in masks(scene)],
        "question_type": QUESTION_TYPES.index(kind),
        "question": question,
        "answer": of.answer_names.index(answer),
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
    # The children touch only numpy, PyAV and Pillow. Where fork exists it saves them the seconds that importing torch
    # takes.
    method = "fork" if sys.platform == "linux" else "spawn"
    # Ctrl-C reaches the children too; it is for the parent to tell and to end them.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context(method).Pool(min(num_proc, len(jobs)), signal.signal, quiet) as pool:
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

    Rendering can be stopped at any time: complete shards of the same settings are kept and the rest is rendered. A
    folder that holds a rendering of other settings is an error unless `overwrite`.

    Args:
        output: the folder, made if missing.
        rule, num_classes, **scene: see `SceneSettings` (width, height, duration, frame_rate, sampling_rate,
            distractors).
        num_train, num_validation, num_test: clips per split; a split of 0 clips is left out. Multiples of K*K balance
            the labels exactly.
        seed: with the split and the clip's number it fixes every clip; asking for more clips later leaves the first
            ones as they were.
        num_proc: processes, by default one per core.
        crf: x264's constant rate factor.
        rows_per_shard: clips in one parquet file.

    Returns:
        the shards' paths, per split.

    Raises:
        ValueError: for a setting out of range. FileExistsError: if `output` holds a rendering of other settings.
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
            partial_path = path.with_suffix(".partial")
            with pq.ParquetWriter(
                partial_path, schema, compression="none"
            ) as writer:  # H.264 does not compress further
                for _ in range(size):
                    rows = next(groups)
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=ROW_GROUP)
                    bar.update(len(rows))
            partial_path.replace(path)  # a shard is there whole or not at all
    return {split: paths for split, paths in shards.items() if paths}


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _claim(folder: Path, settings: RenderSettings, counts: Mapping[str, int], overwrite: bool) -> dict[str, list[Path]]:
    """Makes the folder this rendering's own and names its shards."""
    record = {"version": VERSION, **asdict(settings), "num_clips": dict(counts)}
    note = folder / SETTINGS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = json.loads(note.read_text()) if note.exists() else None
    except ValueError:
        found = "not readable"  # and so another rendering's
    if found is not None and found != record:
        if not overwrite:
            raise FileExistsError(
                f"{folder} holds a SoundingShapes rendering with other settings ({note.name} says which). Choose"
                " another folder, or pass overwrite=True (--overwrite) to replace it."
            )
    elif found is None and any(folder.glob("*.parquet")) and not overwrite:
        raise FileExistsError(
            f"{folder} holds parquet files that are not a SoundingShapes rendering. Choose another folder."
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
    parser = argparse.ArgumentParser(
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
    parser.add_argument("--num_classes", type=int, default=scene.num_classes, help="K, shapes and sounds each")
    parser.add_argument("--num_train", type=int, default=3000)
    parser.add_argument("--num_validation", type=int, default=320)
    parser.add_argument("--num_test", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_proc", type=int, default=None, help="processes; one per core if not given")
    parser.add_argument("--width", type=int, default=scene.width, help="pixels")
    parser.add_argument("--height", type=int, default=scene.height, help="pixels")
    parser.add_argument("--duration", type=int, default=scene.duration, help="whole seconds")
    parser.add_argument("--frame_rate", type=float, default=scene.frame_rate, help="frames per second")
    parser.add_argument("--sampling_rate", type=int, default=scene.sampling_rate, help="Hz")
    parser.add_argument(
        "--distractors", type=int, default=scene.distractors, help="smaller shapes beside the dominating one"
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
        parser.exit(130, "stopped; the same command goes on from the shards that are whole\n")
    for split, paths in shards.items():
        size = sum(path.stat().st_size for path in paths) / 1e6
        print(f"{split}: {len(paths)} shard(s), {size:.1f} MB in {paths[0].parent}")


if __name__ == "__main__":
    main()
