"""Measures what each piece of speed code brings alone: its time, that of the plain form, and their ratio.

    python benchmarks/speed_code.py
    python benchmarks/speed_code.py --only resizing projection --rounds 20

The two forms alternate, on one CPU core. A time is the shortest of the rounds: processor time, except for batch memory, where
worker processes share the work, and for the check of arguments, which has processes of its own. The files with speed code quote
these figures at their heads.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from data_pipeline import large_clip, make_case
from rich.console import Console
from rich.table import Table
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from rendering import render_clip  # noqa: E402

from hf_avfusion.data.collating import AVCollator  # noqa: E402
from hf_avfusion.data.streaming import batch_memory  # noqa: E402
from hf_avfusion.data.streaming.clip_loader import ClipLoader  # noqa: E402
from hf_avfusion.data.streaming.clip_stream import ClipStream  # noqa: E402
from hf_avfusion.data.transforms import ClipTransform  # noqa: E402
from hf_avfusion.media import reader, torchcodec_backend  # noqa: E402
from hf_avfusion.media.reader import read_clip  # noqa: E402
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor  # noqa: E402
from hf_avfusion.models.shared.layers_vit import VideoPatchEmbeddings  # noqa: E402
from hf_avfusion.processing.bilinear_resizing import _taps, resize_window  # noqa: E402

Form = Callable[[], object]
Pairs = Iterator[tuple[str, Form, Form, Callable[[], float]]]  # what, with the speed code, plain, clock


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def plain_resize(video: torch.Tensor, target: tuple[int, int], window: tuple[int, int, int, int]) -> torch.Tensor:
    """`resize_window` by plain indexing, one frame after the other."""
    top, left, height, width = window
    above, below, down = _taps(video.shape[-2], target[0], top, height)
    before, after, right = _taps(video.shape[-1], target[1], left, width)
    frames = []
    for frame in video.float():
        near = frame[..., before]
        wide = near + (frame[..., after] - near) * right
        upper = wide[..., above, :]
        frames.append((upper + (wide[..., below, :] - upper) * down[:, None]).to(torch.uint8))
    return torch.stack(frames)


def resizing() -> Pairs:
    for count, height, width in ((8, 240, 320), (32, 360, 640)):
        video = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
        target = (256, 256 * width // height)
        window = (16, (target[1] - 224) // 2, 224, 224)
        assert torch.equal(resize_window(video, target, window), plain_resize(video, target, window))
        given = video, target, window
        name = f"bilinear_resizing: {count} frames of {width}x{height}, crop 224"
        yield name, lambda a=given: resize_window(*a), lambda a=given: plain_resize(*a), time.process_time


def projection() -> Pairs:
    ours = VideoPatchEmbeddings(3, 768, 2, (16, 16))
    plain = nn.Conv3d(3, 768, kernel_size=ours.kernel, stride=ours.kernel)
    plain.load_state_dict(ours.projection.state_dict())
    clip = torch.randn(1, 32, 3, 224, 224)
    pixels = clip.transpose(1, 2)

    def forward(module: nn.Module, values: torch.Tensor) -> None:
        with torch.no_grad():
            module(values)

    def step(module: nn.Module, values: torch.Tensor) -> None:
        module(values).sum().backward()

    for what, run in (("forward", forward), ("forward and backward", step)):
        name = f"PatchProjection: tubelets of MBT-Base, 32 frames, {what}"
        yield name, lambda r=run: r(ours, clip), lambda r=run: r(plain, pixels), time.process_time


def skipping() -> Pairs:
    """A window of 8 frames over 8 s of 320x240 with B-frames, read and preprocessed."""
    clips, processor = [large_clip(seed) for seed in range(4)], MBTProcessor(num_frames=8, span=8.0)

    def load() -> None:
        for clip in clips:
            processor(videos=clip, return_tensors="pt")

    def plain() -> None:
        with replaced(reader, "can_skip_frames", lambda codec: False):
            load()

    yield "frame_skipper: 4 clips of 320x240, 8 frames of 8 s", load, plain, time.process_time


def backends() -> Pairs:
    """Videos that torchcodec may decode (no B-frames), with sound, 8 frames spread over all of it."""
    for seconds, side, keyframes in ((2, 48, 250), (10, 48, 250), (2, 240, 250), (10, 240, 250), (10, 240, 12)):
        clip = render_clip(num_frames=25 * seconds, size=(side * 4 // 3, side), gop=keyframes)

        def load(backend: str, clip: bytes = clip, seconds: int = seconds) -> None:
            times = [index * seconds / 8 for index in range(8)]
            read_clip(clip, frame_times=times, audio_window=(0, seconds), backend=backend)

        def chosen(load: Callable[[str], None] = load) -> None:
            load("torchcodec")

        def plain(load: Callable[[str], None] = load) -> None:
            load("pyav")

        name = f"torchcodec, plain is PyAV: {seconds} s of {side * 4 // 3}x{side}, a keyframe every {keyframes} frames"
        with replaced(torchcodec_backend, "MIN_SECONDS", 0.0):
            yield name, chosen, plain, time.process_time


def memory() -> Pairs:
    for name, number in (("small", 1024), ("large", 96)):
        case = make_case(name, number)
        rows = [
            {"clip_id": str(n), "video": {"bytes": clip, "path": None}, "start": None, "end": None, "label": 0}
            for n, clip in enumerate(case.clips)
        ]
        stream = ClipStream(rows, ClipTransform(case.processor))

        def epoch(stream: ClipStream = stream, size: int = case.batch_size) -> None:
            for _ in ClipLoader(stream, size, AVCollator(), num_workers=2):
                pass

        def plain(epoch: Form = epoch) -> None:
            with replaced(batch_memory.WorkerSlots, "place", lambda self, batch: batch):
                epoch()

        yield f"batch_memory: {number} {name} clips, 2 workers", epoch, plain, time.perf_counter


def arguments() -> Pairs:
    """How long a misspelt option waits for its answer, against the imports that it would wait for otherwise."""

    def run(*command: str) -> Form:
        return lambda: subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)

    early = run("examples/finetune_classification.py", "--learing_rate", "1")
    imports = run("-c", "import hf_avfusion.training.arguments")
    yield "arguments: a misspelt option, against the imports", early, imports, time.perf_counter


CASES = {each.__name__: each for each in (resizing, projection, skipping, backends, memory, arguments)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    table = Table("speed code", "ms", "plain, ms", "ratio", "median ratio")
    for case in options.only:
        for name, ours, plain, clock in CASES[case]():
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(options.rounds + 1):
                for form, kept in zip((ours, plain), times):
                    start = clock()
                    form()
                    if turn:  # the first turn only warms up
                        kept.append(1000 * (clock() - start))
            best = [min(kept) for kept in times]
            median = statistics.median(one / other for one, other in zip(*times))
            table.add_row(name, *(f"{value:.1f}" for value in best), f"{best[0] / best[1]:.2f}", f"{median:.2f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
