"""Mutated clips of every container either decode or raise a MediaError or ValueError, within bounds of time and memory.

HF_AVFUSION_FUZZ_SEEDS=1000 tries that many seeds, and 1000:2000 those of a range; the default is 150.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_run import mutated
from rendering import render_clip

ROOT = Path(__file__).resolve().parents[2]
CLIPS = {
    "mp4": {"b_frames": 2},
    "fragmented": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "mov": {"container": "mov", "audio_codec": "pcm_s16le"},
    "matroska": {"container": "matroska", "b_frames": 2, "live": True},
    "webm": {"container": "webm", "video_codec": "libvpx-vp9", "audio_codec": "libopus", "sampling_rate": 48000},
    "mpegts": {"container": "mpegts", "b_frames": 2, "sampling_rate": 48000},
    "mpeg": {"container": "mpeg", "video_codec": "mpeg1video", "audio_codec": "mp2", "sampling_rate": 48000},
    "avi": {"container": "avi", "video_codec": "mpeg4", "audio_codec": "pcm_s16le"},
    "flv": {"container": "flv", "sampling_rate": 44100},
    "wav": {"container": "wav", "audio_codec": "pcm_s16le", "num_frames": 0},
    "ogg": {"container": "ogg", "audio_codec": "libopus", "num_frames": 0, "sampling_rate": 48000},
    "mp3": {"container": "mp3", "audio_codec": "libmp3lame", "num_frames": 0, "sampling_rate": 44100},
    "flac": {"container": "flac", "audio_codec": "flac", "num_frames": 0},
}
MEMORY_MIB = 300  # beyond that of the whole clips; 150 seeds need about 10


def test_mutations_depend_on_the_seed_alone():
    data = bytes(range(256)) * 8
    made = [mutated(data, seed) for seed in range(40)]
    assert made == [mutated(data, seed) for seed in range(40)]
    assert len(set(made)) == 40
    assert data not in made
    assert {len(each) < len(data) for each in made} == {True, False}


@pytest.mark.slow
def test_mutated_clips_decode_or_raise(tmp_path):
    asked = os.environ.get("HF_AVFUSION_FUZZ_SEEDS", "150")
    first, _, stop = asked.rpartition(":")
    for name, options in CLIPS.items():
        render_clip(tmp_path / name, **{"num_frames": 25, "seconds": 1.0, **options})
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz_run.py"), tmp_path, first or "0", stop],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    *failed, counts = map(json.loads, done.stdout.splitlines())
    assert not failed, "\n".join(f"seed {each['seed']}: {each['error']}" for each in failed)
    print(counts)
    assert 0 < counts["decoded"] < counts["clips"]
    assert counts["peak_mib"] < MEMORY_MIB
