"""Measures clips per second from compressed bytes to batches and through the Trainer, compared with a bare decoding loop.

    python benchmarks/data_pipeline.py                      # both sets of clips, both decoders, 0, 1 and 2 workers
    python benchmarks/data_pipeline.py --clips large --backends pyav --workers 0 --rounds 9

Four pipelines read the same windows of the same clips:

    bare         a minimal hand-written loop with PyAV and torchaudio: one pass over the packets, frames to RGB tensors,
                 audio to a mono tensor, resampling if necessary, torchaudio's kaldi.fbank. It does no resizing,
                 normalisation, batching or checks, although training needs the first three; the other pipelines include
                 them. With torchcodec, the loop uses its two decoders.
    preprocess   `ClipTransform` on one clip after the other: decodes, resizes, crops, normalises, computes log-mels
    loader       `ClipLoader` over a `ClipStream` of a `datasets.Dataset`: also shuffles and collates; with workers, the
                 DataLoader transfers the batches
    training     `AVTrainer` on that loader, with a model of one parameter that ignores its inputs

Rounds alternate (bare, preprocess, loader, training, bare, ...). A ratio is the median over the rounds of the ratio within
a round, so that varying other load on the machine affects all pipelines. Without workers, processor time is printed in
addition to wall time; on a busy machine, use the processor time. With workers, the bare loop runs in the same number of
processes and returns no tensors. Batches are timed from the first batch on, so the start of workers does not count.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import torch
import torchaudio
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import TrainerCallback

from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.clip_loader import ClipLoader
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.synthetic.sounding_scenes import SceneSettings, draw_frames, synthesise
from hf_avfusion.data.synthetic.sounding_shapes import encode, make_scene
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.media.reader import ClipReader
from hf_avfusion.media.torchcodec_backend import torchcodec_works
from hf_avfusion.media.windows import Window, sample_windows
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.trainer import AVTrainer

RATE = 16000  # Hz of both front ends


@dataclass(frozen=True)
class Case:
    """A set of clips and their processor."""

    name: str
    clips: list[bytes]
    processor: MBTProcessor
    batch_size: int


def large_clip(seed: int) -> bytes:
    """Renders 10 s of 320x240 at 25 fps, H.264 with x264's defaults (B-frames, CABAC, deblocking), and 44.1 kHz stereo AAC.

    The frames show a panning texture, a moving square and noise.
    """
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 255, (36, 48, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "medium", "crf": "23"})
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        audio = container.add_stream("aac", rate=44100, layout="stereo")
        audio.bit_rate = 128_000
        for number in range(250):
            top, left = int(60 + 59 * np.sin(number / 40)), int(80 + 79 * np.cos(number / 55))
            pixels = texture[top : top + 240, left : left + 320].astype(np.int16)
            place = number * 3 % 280
            pixels[80:140, place : place + 40] = 255 - pixels[80:140, place : place + 40]
            pixels += generator.integers(-6, 7, pixels.shape, dtype=np.int16)
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode())
        seconds = np.arange(441_000) / 44100
        wave = np.stack([np.sin(2 * np.pi * (220 + 40 * side) * seconds) for side in (0, 1)]) * 0.3
        wave += generator.normal(0, 0.05, wave.shape)
        samples = av.AudioFrame.from_ndarray(wave.astype(np.float32), format="fltp", layout="stereo")
        samples.sample_rate, samples.pts = 44100, 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode())
    return target.getvalue()


def small_clip(number: int) -> bytes:
    """Renders a clip of SoundingShapes: 2 s of 64x64 at 12.5 fps, 16 kHz mono."""
    settings = SceneSettings()
    scene = make_scene(settings, 0, "train", number)
    return encode(draw_frames(scene), synthesise(scene), settings.frame_rate, settings.sampling_rate)


def make_case(name: str, number: int) -> Case:
    if name == "large":  # the paper's window, at the published sizes
        return Case(name, [large_clip(n) for n in range(number)], MBTProcessor(num_frames=8, span=8.0), 4)
    # The processor of examples/quickstart.py.
    side = {"height": 64, "width": 64}
    processor = MBTProcessor(
        AVFusionVideoProcessor(size=side, crop_size=side),
        AVFusionFeatureExtractor.from_preset("mbt", spectrogram_length=200),
        num_frames=8, span=2.0, audio_seconds=2.0,
    )  # fmt: skip
    return Case(name, [small_clip(n) for n in range(number)], processor, 32)


# ----------------------------------------------------------------------------------------------------- the bare loop


def fbank(waveform: torch.Tensor, rate: int) -> torch.Tensor:
    if rate != RATE:
        waveform = torchaudio.functional.resample(waveform, rate, RATE)
    return torchaudio.compliance.kaldi.fbank(
        waveform[None], num_mel_bins=128, sample_frequency=RATE, window_type="hamming"
    )


def bare_pyav(data: bytes, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns frames, uint8 [T, H, W, 3], and the log-mel of one window that does not wrap."""
    times, (begin, end) = sorted(window.frame_times), window.audio_window
    frames, samples, first = [], [], None
    with av.open(io.BytesIO(data)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.codec_context.thread_type, video.codec_context.thread_count = "NONE", 1
        reformatter, shown, heard = av.video.reformatter.VideoReformatter(), None, 0.0
        for packet in container.demux(video, audio):
            if packet.stream is video:
                if len(frames) < len(times):
                    for frame in packet.decode():
                        while len(frames) < len(times) and frame.time > times[len(frames)] + 5e-4:
                            frames.append(reformatter.reformat(shown or frame, format="rgb24", threads=1).to_ndarray())
                        shown = frame
            elif heard < end:
                for frame in packet.decode():
                    heard = frame.time + frame.samples / frame.sample_rate
                    if heard > begin:
                        first = frame.time if first is None else first
                        samples.append(frame.to_ndarray())
            if len(frames) == len(times) and heard >= end:
                break
        while len(frames) < len(times):
            frames.append(reformatter.reformat(shown, format="rgb24", threads=1).to_ndarray())
        rate = audio.codec_context.sample_rate
    start = round((begin - first) * rate)
    wave = np.concatenate(samples, axis=1)[:, max(start, 0) : start + round((end - begin) * rate)]
    return torch.from_numpy(np.stack(frames)), fbank(torch.from_numpy(wave).mean(0), rate)


def bare_torchcodec(data: bytes, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    video = VideoDecoder(data, num_ffmpeg_threads=1)
    frames = video.get_frames_played_at([min(t, video.metadata.end_stream_seconds - 1e-3) for t in window.frame_times])
    samples = AudioDecoder(data).get_samples_played_in_range(*window.audio_window)
    return frames.data, fbank(samples.data.mean(0), samples.sample_rate)


BARE = {"pyav": bare_pyav, "torchcodec": bare_torchcodec}


class BareLoop(TorchDataset):
    """The bare loop for a DataLoader's workers; returns numbers, not tensors."""

    def __init__(self, case: Case, backend: str, windows: Sequence[Window]):
        self.case, self.decode, self.windows = case, BARE[backend], windows

    def __len__(self) -> int:
        return len(self.case.clips)

    def __getitem__(self, index: int) -> int:
        frames, mel = self.decode(self.case.clips[index], self.windows[index])
        return len(frames) + len(mel)


# ------------------------------------------------------------------------------------------------------ the pipelines


class FreeModel(torch.nn.Module):
    """A model that costs nothing: its loss is its only parameter."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values, input_features, labels=None):
        return {"loss": self.weight * 1.0}


class Stopwatch(TrainerCallback):
    """Records the end of every step; timing from the first mark leaves out the start of workers."""

    def __init__(self):
        self.marks: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.marks.append((time.perf_counter(), time.process_time()))


def clock(marks: Sequence[tuple[float, float]], clips_each: int) -> tuple[float, float]:
    """Computes clips per second of wall time and of processor time between the first and the last mark."""
    clips = clips_each * (len(marks) - 1)
    return tuple(clips / (last - first) for first, last in zip(marks[0], marks[-1]))


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Pipelines:
    """The four pipelines over the same clips; each method runs one round and returns its clips/s (wall, processor)."""

    def __init__(self, case: Case, backend: str, workers: int, folder: Path):
        self.case, self.workers, self.folder = case, workers, folder
        rows = {
            "clip_id": [f"clip-{n}" for n in range(len(case.clips))],
            "video": [{"bytes": data, "path": None} for data in case.clips],
            "start": [None] * len(case.clips),
            "end": [None] * len(case.clips),
            "label": [n % 2 for n in range(len(case.clips))],
        }
        features = datasets.Features(
            {
                "clip_id": datasets.Value("string"),
                "video": datasets.Video(decode=False),
                "start": datasets.Value("float32"),
                "end": datasets.Value("float32"),
                "label": datasets.ClassLabel(names=["a", "b"]),
            }
        )
        self.rows = datasets.Dataset.from_dict(rows, features=features)
        # The centred windows of evaluation, so that all pipelines decode the same frames.
        self.transform = ClipTransform(case.processor, "label", mode="eval", backend=backend)
        policy, windows = case.processor.window_policy, []
        for data in case.clips:
            with ClipReader(data) as reader:
                windows += sample_windows(policy, reader.info)
        self.loop = BareLoop(case, backend, windows)
        self.stream = ClipStream(self.rows, self.transform, seed=0, shuffle_buffer=1)
        self.epoch = 0

    def bare(self) -> tuple[float, float]:
        if not self.workers:
            begin = now()
            for index in range(len(self.loop)):
                self.loop[index]
            return clock([begin, now()], len(self.loop))
        loader = DataLoader(self.loop, batch_size=self.case.batch_size, num_workers=self.workers)
        return self._through(loader)

    def preprocess(self) -> tuple[float, float]:
        begin = now()
        for row in self.rows:
            self.transform(row)
        return clock([begin, now()], len(self.rows))

    def loader(self) -> tuple[float, float]:
        self.epoch += 1
        self.stream.set_epoch(self.epoch)
        loader = ClipLoader(self.stream, self.case.batch_size, AVCollator(), num_workers=self.workers)
        return self._through(loader)

    def training(self) -> tuple[float, float]:
        watch = Stopwatch()
        args = AVTrainingArguments(
            output_dir=str(self.folder), per_device_train_batch_size=self.case.batch_size, num_train_epochs=1, report_to="none",
            use_cpu=True, save_strategy="no", disable_tqdm=True, dataloader_num_workers=self.workers, logging_strategy="no",
        )  # fmt: skip
        trainer = AVTrainer(FreeModel(), args, train_dataset=self.stream, callbacks=[watch])
        trainer.remove_callback(transformers_printer())
        trainer.train()
        return clock(watch.marks, self.case.batch_size)

    def _through(self, loader: Any) -> tuple[float, float]:
        marks = [now() for _ in loader]
        return clock(marks, self.case.batch_size)


def transformers_printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


# ------------------------------------------------------------------------------------------------------------ report


def measure(pipelines: Pipelines, rounds: int) -> dict[str, list[tuple[float, float]]]:
    methods: dict[str, Callable[[], tuple[float, float]]] = {
        "bare": pipelines.bare,
        "preprocess": pipelines.preprocess,
        "loader": pipelines.loader,
        "training": pipelines.training,
    }
    if pipelines.workers:
        del methods["preprocess"]  # runs only in this process
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            rate = method()
            if number:  # the first round warms up
                rates[name].append(rate)
    return rates


def ratio(over: list[tuple[float, float]], under: list[tuple[float, float]], clock_of: int) -> str:
    return f"{statistics.median(a[clock_of] / b[clock_of] for a, b in zip(over, under)):.3f}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", nargs="+", choices=["small", "large"], default=["small", "large"])
    parser.add_argument("--backends", nargs="+", choices=list(BARE), default=list(BARE))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, help="default: 9 with small clips, 7 with large ones")
    parser.add_argument("--number", type=int, help="clips per round; default: 384 small or 48 large ones")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # like in a DataLoader's worker
    datasets.disable_progress_bars()
    backends = list(arguments.backends)
    console = Console(width=120)
    if "torchcodec" in backends and not torchcodec_works():
        console.print("torchcodec does not work here and is skipped")
        backends.remove("torchcodec")
    table = Table(
        title="clips/s (median over rounds); ratios are medians of the ratios per round", title_justify="left"
    )
    columns = ["clips", "backend", "workers", "clock", "bare", "preprocess", "loader", "training"]
    for column in [*columns, "loader / bare", "training / loader"]:
        table.add_column(column, justify="right" if column not in columns[:4] else "left")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.clips:
            case = make_case(name, arguments.number or {"small": 384, "large": 48}[name])
            if len(case.clips) < 2 * case.batch_size:
                raise SystemExit(
                    f"--number {arguments.number}: {name} clips need at least two batches of {case.batch_size}; increase it"
                )
            for backend in backends:
                for workers in arguments.workers:
                    rounds = arguments.rounds or {"small": 9, "large": 7}[name]
                    rates = measure(Pipelines(case, backend, workers, Path(folder)), rounds)
                    for number, label in enumerate(("wall", "processor") if not workers else ("wall",)):
                        medians = {
                            method: f"{statistics.median(rate[number] for rate in own):.1f}"
                            for method, own in rates.items()
                        }
                        row = (
                            name, backend, str(workers), label, medians["bare"], medians.get("preprocess", ""),
                            medians["loader"], medians["training"], ratio(rates["loader"], rates["bare"], number),
                            ratio(rates["training"], rates["loader"], number),
                        )  # fmt: skip
                        table.add_row(*row)
                        print("\t".join(row), file=sys.stderr, flush=True)  # progress, since all rounds take minutes
    console.print(table)


if __name__ == "__main__":
    main()
