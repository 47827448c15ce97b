"""Decodes mutated clips for `test_fuzzing.py`, in a process of its own:  python fuzz_run.py FOLDER FIRST STOP

FOLDER holds the whole clips. Each seed selects a clip and a mutation. A clip that takes too long ends the process with the
traceback of all threads. The last line is a JSON object of counts; each line before it names a seed that failed.
"""

import faulthandler
import json
import random
import resource
import sys
import time
import traceback
from pathlib import Path

import torch

from hf_avfusion.media.reader import read_clip

SECONDS_PER_CLIP = 20
ADDRESS_SPACE = 2 << 30  # bytes more than after the imports


def mutated(data: bytes, seed: int) -> bytes:
    """Cuts the data, flips bytes, zeroes a range or swaps two ranges."""
    chance = random.Random(seed)
    changed, length = bytearray(data), chance.randint(1, max(1, len(data) // 8))
    start, other = (chance.randrange(len(data) - length + 1) for _ in range(2))
    kind = chance.choice(("cut", "flip", "zero", "swap"))
    if kind == "cut":
        return data[: chance.randrange(len(data))]
    if kind == "flip":
        for _ in range(chance.choice((1, 10, 100, 1000))):
            changed[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    elif kind == "zero":
        changed[start : start + length] = bytes(length)
    else:
        changed[start : start + length], changed[other : other + length] = (
            data[other : other + length],
            data[start : start + length],
        )
    return bytes(changed)


def decodes(data: bytes, seed: int) -> bool:
    """Whether the clip decodes; False for the errors that a caller expects."""
    damaged = "raise" if seed % 2 else "keep"
    try:
        clip = read_clip(data, frame_times=[0.0, 0.2, 0.6], audio_window=(0.1, 0.7), on_decode_error=damaged)
    except ValueError:  # MediaError is one
        return False
    if clip.frames is not None and (len(clip.frames) > 3 or (damaged == "raise" and len(clip.frames) < 3)):
        raise AssertionError(f"{len(clip.frames)} frames for 3 times")
    if clip.waveform is not None and not torch.isfinite(clip.waveform).all():
        raise AssertionError("samples that are not finite")
    return True


def main(folder: str, first: str, stop: str) -> None:
    clips = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    for clip in clips:
        if not decodes(clip, seed=1):
            raise AssertionError("a whole clip does not decode")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoded, slowest, seeds = 0, 0.0, range(int(first), int(stop))
    for seed in seeds:
        faulthandler.dump_traceback_later(SECONDS_PER_CLIP, exit=True)
        began = time.perf_counter()
        try:
            decoded += decodes(mutated(clips[seed % len(clips)], seed), seed)
        except BaseException:
            print(json.dumps({"seed": seed, "error": traceback.format_exc()}), flush=True)
        slowest = max(slowest, time.perf_counter() - began)
    faulthandler.cancel_dump_traceback_later()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"clips": len(seeds), "decoded": decoded, "slowest": round(slowest, 2), "peak_mib": round(grown)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
