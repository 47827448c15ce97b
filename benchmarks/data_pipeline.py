"""Clips per second from compressed bytes to batches and through the Trainer, against a bare decoding loop in the same run.

    python benchmarks/data_pipeline.py                      # both sets of clips, both decoders, 0, 1 and 2 workers
    python benchmarks/data_pipeline.py --clips large --backends pyav --workers 0 --rounds 9

What is compared, for the same windows of the same clips:

    bare         the least that a loop by hand does with PyAV and torchaudio: one pass over the packets, the wanted frames
                 to RGB tensors, the wanted sound to a mono tensor, resampling if need be, torchaudio's kaldi.fbank. No
                 resizing, no normalising, no batches, no checks, though every training loop needs the first three:
                 what the other ways do besides is in their figures. With torchcodec: its two decoders, asked for
                 the same.
    preprocess   one clip after the other through `ClipTransform`: decoded, resized, cropped, normalised, log-mel
    loader       `ClipLoader` over a `ClipStream` of a `datasets.Dataset`: shuffled, collated, and, with workers, handed
                 over by the DataLoader
    training     `AVTrainer` on that loader, with a model of one number that looks at nothing

Rounds alternate (bare, preprocess, loader, training, bare, ...), and a ratio is the median of the ratios of neighbours in
one round, so that other load on the machine, which comes and goes, falls on all alike. Without workers processor time is
given beside wall time; it is what to go by on a busy machine. With workers the bare loop runs in as many processes and
sends nothing back. Whatever comes in batches is timed from the first batch on, so that starting workers counts for none.
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
from hf_avfusion.data.synthetic.sounding_scenes import SceneSettings, draw, synthesise
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
    """A set of clips and the processor that reads them."""

    name: str
    clips: list[bytes]
    processor: MBTProcessor
    batch_size: int


def large_clip(seed: int) -> bytes:
    """10 s of 320x240 at 25 fps, H.264 with x264's own defaults (B-frames, CABAC, deblocking), and 44.1 kHz stereo AAC:
    a textured picture that pans, objects that move over it, and noise.
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
            picture = texture[top : top + 240, left : left + 320].astype(np.int16)
            place = number * 3 % 280
            picture[80:140, place : place + 40] = 255 - picture[80:140, place : place + 40]
            picture += generator.integers(-6, 7, picture.shape, dtype=np.int16)
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode())
        seconds = np.arange(441_000) / 44100
        wave = np.stack([np.sin(2 * np.pi * (220 + 40 * side) * seconds) for side in (0, 1)]) * 0.3
        wave += generator.normal(0, 0.05, wave.shape)
        sound = av.AudioFrame.from_ndarray(wave.astype(np.float32), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts = 44100, 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return target.getvalue()


def small_clip(number: int) -> bytes:
    """SoundingShapes: 2 s of 64x64 at 12.5 fps, 16 kHz mono."""
    settings = SceneSettings()
    scene = make_scene(settings, 0, "train", number)
    return encode(draw(scene), synthesise(scene), settings.frame_rate, settings.sampling_rate)


def make_case(name: str, number: int) -> Case:
    if name == "large":  # the paper's window, at the published sizes
        return Case(name, [large_clip(n) for n in range(number)], MBTProcessor(num_frames=8, span=8.0), 4)
    # As examples/quickstart.py trains on them.
    side = {"height": 64, "width": 64}
    processor = MBTProcessor(
        AVFusionVideoProcessor(size=side, crop_size=side),
        AVFusionFeatureExtractor.from_preset("mbt", spectrogram_length=200),
        num_frames=8, span=2.0, audio_seconds=2.0,
    )  # fmt: skip
    return Case(name, [small_clip(n) for n in range(number)], processor, 32)


# -------------------------------------------------------------------------------------------------- the loop by hand


def fbank(waveform: torch.Tensor, rate: int) -> torch.Tensor:
    if rate != RATE:
        waveform = torchaudio.functional.resample(waveform, rate, RATE)
    return torchaudio.compliance.kaldi.fbank(
        waveform[None], num_mel_bins=128, sample_frequency=RATE, window_type="hamming"
    )


def bare_pyav(data: bytes, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [T, H, W, 3] and the log-mel of one window that does not wrap."""
    times, (begin, end) = sorted(window.frame_times), window.audio_window
    frames, sound, first = [], [], None
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
                        sound.append(frame.to_ndarray())
            if len(frames) == len(times) and heard >= end:
                break
        while len(frames) < len(times):
            frames.append(reformatter.reformat(shown, format="rgb24", threads=1).to_ndarray())
        rate = audio.codec_context.sample_rate
    start = round((begin - first) * rate)
    wave = np.concatenate(sound, axis=1)[:, max(start, 0) : start + round((end - begin) * rate)]
    return torch.from_numpy(np.stack(frames)), fbank(torch.from_numpy(wave).mean(0), rate)


def bare_torchcodec(data: bytes, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    video = VideoDecoder(data, num_ffmpeg_threads=1)
    frames = video.get_frames_played_at([min(t, video.metadata.end_stream_seconds - 1e-3) for t in window.frame_times])
    sound = AudioDecoder(data).get_samples_played_in_range(*window.audio_window)
    return frames.data, fbank(sound.data.mean(0), sound.sample_rate)


BARE = {"pyav": bare_pyav, "torchcodec": bare_torchcodec}


class BareLoop(TorchDataset):
    """The loop by hand in a DataLoader's workers; gives back numbers, not tensors."""

    def __init__(self, case: Case, backend: str, windows: Sequence[Window]):
        self.case, self.decode, self.windows = case, BARE[backend], windows

    def __len__(self) -> int:
        return len(self.case.clips)

    def __getitem__(self, index: int) -> int:
        frames, mel = self.decode(self.case.clips[index], self.windows[index])
        return len(frames) + len(mel)


# ------------------------------------------------------------------------------------------------------ what is timed


class FreeModel(torch.nn.Module):
    """Costs nothing: its loss is its one number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values, input_features, labels=None):
        return {"loss": self.weight * 1.0}


class Stopwatch(TrainerCallback):
    """Notes when the first step ended, so that the start of workers counts for nobody, and when the last did."""

    def __init__(self):
        self.marks: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.marks.append((time.perf_counter(), time.process_time()))


def clock(marks: Sequence[tuple[float, float]], clips_each: int) -> tuple[float, float]:
    """Clips per second of wall and of processor time between the first and the last mark."""
    clips = clips_each * (len(marks) - 1)
    return tuple(clips / (last - first) for first, last in zip(marks[0], marks[-1]))


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Pipelines:
    """The four ways through the same clips; each call of a way is one round, and gives its clips/s (wall, processor)."""

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
        # The centred windows of evaluation: all ways decode the same.
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
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "bare": pipelines.bare,
        "preprocess": pipelines.preprocess,
        "loader": pipelines.loader,
        "training": pipelines.training,
    }
    if pipelines.workers:
        del ways["preprocess"]  # happens in this process only
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            rate = way()
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
    parser.add_argument("--rounds", type=int, help="default 9 of small clips, 7 of large ones")
    parser.add_argument("--number", type=int, help="clips per round; default 384 small or 48 large")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # as in a DataLoader's worker
    datasets.disable_progress_bars()
    backends = list(arguments.backends)
    console = Console(width=120)
    if "torchcodec" in backends and not torchcodec_works():
        console.print("torchcodec does not decode here, and is left out")
        backends.remove("torchcodec")
    table = Table(title="clips/s (median of rounds); ratios are medians of the rounds' own", title_justify="left")
    columns = ["clips", "backend", "workers", "clock", "bare", "preprocess", "loader", "training"]
    for column in [*columns, "loader / bare", "training / loader"]:
        table.add_column(column, justify="right" if column not in columns[:4] else "left")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.clips:
            case = make_case(name, arguments.number or {"small": 384, "large": 48}[name])
            if len(case.clips) < 2 * case.batch_size:
                raise SystemExit(
                    f"--number {arguments.number}: {name} clips come in batches of {case.batch_size}, two at least"
                )
            for backend in backends:
                for workers in arguments.workers:
                    rounds = arguments.rounds or {"small": 9, "large": 7}[name]
                    rates = measure(Pipelines(case, backend, workers, Path(folder)), rounds)
                    for number, label in enumerate(("wall", "processor") if not workers else ("wall",)):
                        middle = {
                            way: f"{statistics.median(rate[number] for rate in of):.1f}" for way, of in rates.items()
                        }
                        row = (
                            name, backend, str(workers), label, middle["bare"], middle.get("preprocess", ""),
                            middle["loader"], middle["training"], ratio(rates["loader"], rates["bare"], number),
                            ratio(rates["training"], rates["loader"], number),
                        )  # fmt: skip
                        table.add_row(*row)
                        print("\t".join(row), file=sys.stderr, flush=True)  # the whole takes minutes
    console.print(table)


if __name__ == "__main__":
    main()
