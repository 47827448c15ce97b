"""Prints the peak memory of single calls, each in a fresh process: large frames, many views, odd sampling rates.

    python benchmarks/peak_memory.py [--only NAME]

"beyond" is the peak of resident memory, less that before the call (after another, small call) and less the tensors it returns.
"CPU s" is the time of the processor over all threads, which other programs change less than "s". Linux only.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

CASES = {
    # name: (width, height, seconds of video, arguments of the call)
    "640x360, 30 views of 32 frames": (640, 360, 20.0, {"num_views": 30}),
    "1080p, 1 view": (1920, 1080, 6.0, {}),
    "1080p, 4 views": (1920, 1080, 6.0, {"num_views": 4}),
    "1080p, 16 views": (1920, 1080, 6.0, {"num_views": 16}),
    "1080p, 16 views of a file four times as long": (1920, 1080, 24.0, {"num_views": 16}),
    "1080p, 4 views, torchcodec": (1920, 1080, 6.0, {"num_views": 4, "backend": "torchcodec"}),
    "4K, 4 views": (3840, 2160, 4.0, {"num_views": 4}),
    "8K, 1 view": (7680, 4320, 1.0, {}),
    "11,127 Hz": (0, 0, 10.0, {"rate": 11_127}),
    "44,101 Hz": (0, 0, 10.0, {"rate": 44_101}),
    "192,007 Hz": (0, 0, 10.0, {"rate": 192_007}),
    "767,999 Hz": (0, 0, 10.0, {"rate": 767_999}),
}


def write_video(path: str, width: int, height: int, seconds: float) -> None:
    import av

    with av.open(path, "w") as output:
        video = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "threads": "2"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound = output.add_stream("aac", rate=48_000, layout="stereo")
        for index in range(round(seconds * 25)):
            picture = np.full((height, width, 3), index % 256, np.uint8)
            picture[:: index % 7 + 1, :: index % 5 + 1] = 255 - index % 256
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(video.encode(None))
        samples = np.random.default_rng(0).normal(size=(2, round(seconds * 48_000))).astype(np.float32) / 10
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))


def resident(field: str) -> float:
    """A field of /proc/self/status in MiB: VmRSS, or VmHWM, its peak."""
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").open() if line.startswith(field))


def measure(path: str, small: str, arguments: dict, results: multiprocessing.Queue) -> None:
    from hf_avfusion import MBTProcessor

    processor, rate = MBTProcessor(), arguments.get("rate")
    waveform = np.random.default_rng(0).normal(size=10 * (rate or 1)).astype(np.float32)

    def call(source: str, arguments: dict) -> dict:
        if rate is not None:
            return processor(audio=waveform, sampling_rate=rate, do_resample=True, return_tensors="pt")
        return processor(videos=source, return_tensors="pt", **arguments)

    if rate is None:
        call(small, arguments)
    else:
        processor(audio=np.zeros(480_000, np.float32), sampling_rate=48_000, do_resample=True, return_tensors="pt")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start, cpu_start = resident("VmRSS"), time.perf_counter(), time.process_time()
    tensors = call(path, arguments)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    finished = sum(tensor.nbytes for tensor in tensors.values()) / 2**20
    results.put((resident("VmHWM") - before, finished, seconds, cpu_seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="cases whose name contains this")
    only = parser.parse_args().only
    context = multiprocessing.get_context("spawn")
    print(f"{'case':<46} {'peak MiB':>9} {'tensors':>8} {'beyond':>7} {'s':>6} {'CPU s':>6}")
    with tempfile.TemporaryDirectory() as folder:
        small = f"{folder}/small.mp4"
        write_video(small, 64, 64, 3.0)
        for name, (width, height, seconds, arguments) in CASES.items():
            if only is not None and only not in name:
                continue
            path = f"{folder}/{width}x{height}_{seconds}.mp4"
            if width and not Path(path).exists():
                write_video(path, width, height, seconds)
            results = context.Queue()
            process = context.Process(target=measure, args=(path, small, arguments, results))
            process.start()
            peak, finished, taken, cpu = results.get(timeout=600)
            process.join()
            print(f"{name:<46} {peak:9.0f} {finished:8.0f} {peak - finished:7.0f} {taken:6.1f} {cpu:6.2f}", flush=True)


if __name__ == "__main__":
    main()
