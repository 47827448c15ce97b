"""The tables of docs/inputs.md: what is read and what is refused, each line from a call.

python tests/inputs_table.py        # writes docs/inputs.md; tests/test_inputs_table.py compares it
"""

import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from PIL import Image
from rendering import bit_flipped, faststart, render_clip, sound, truncated
from travellers import processor, traveller

from hf_avfusion.processing import array_inputs, feature_extraction_avfusion, video_processing_avfusion

PAGE = Path(__file__).resolve().parents[1] / "docs" / "inputs.md"
HEAD = """# What is read, what is refused

The right column is what the call returned or raised when this page was written, with `python tests/inputs_table.py`. A test repeats
every call. Messages are shortened to their first sentence, with N for numbers. The processor is a tiny one: 4 frames of 16 x 16
pixels and 0.32 s of sound. In a stream, a refused file is skipped and counted (`on_error="skip"`).
"""
PROCESSOR = processor()
WAVE = sound("chirp", 5120, 16000)[0]  # as long as the window
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
SOUND_ONLY = {"num_frames": 0, "seconds": 2.0}
WITHOUT_SOUND = {"audio": None}

Call = Callable[[], Any]


def file(data: Any, **options: Any) -> Call:
    """Reads a media file: bytes, or a function that makes them."""
    return lambda: PROCESSOR(videos=data() if callable(data) else data, return_tensors="pt", **options)


def clip(**arguments: Any) -> Call:
    return file(lambda: render_clip(**arguments))


def twice(**arguments: Any) -> Call:
    return file(lambda: render_clip(**arguments) * 2)


def named(suffix: str, data: bytes | None, mode: str = "rb") -> Call:
    """Reads a file of a temporary folder, by its path or, with a mode, as an open file."""

    def read() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, f"clip{suffix}")
            if data is not None:
                Path(path).write_bytes(data)
            if mode == "path":
                return PROCESSOR(videos=path, return_tensors="pt")
            with open(path, mode) as opened:
                return PROCESSOR(videos=opened, return_tensors="pt")

    return read


def frames(value: Any, **options: Any) -> Call:
    return lambda: PROCESSOR(videos=value() if callable(value) else value, return_tensors="pt", **options)


def audio(value: Any, **options: Any) -> Call:
    return lambda: PROCESSOR(audio=value, return_tensors="pt", **options)


def model(**inputs: Any) -> Call:
    def run() -> None:
        net, prepare = traveller("mbt")
        whole = prepare(videos=FRAMES, audio=WAVE, sampling_rate=16000, return_tensors="pt")
        net(**{**whole, **inputs})

    return run


def pictures(mode: str) -> list[Image.Image]:
    return [Image.fromarray(frame).convert(mode) for frame in FRAMES]


def transparent() -> list[Image.Image]:
    faint = pictures("RGBA")
    for picture in faint:
        picture.putalpha(128)
    return faint


CONTAINERS: dict[str, dict[str, Any]] = {
    "MP4 (H.264, AAC)": {},
    "MOV": {"container": "mov"},
    "MKV": {"container": "matroska"},
    "WebM (VP8, Opus)": {
        "container": "webm", "video_codec": "libvpx", "audio_codec": "libopus", "sampling_rate": 48000,
    },
    "AVI with B-frames": {"container": "avi", "audio_codec": "libmp3lame", "sampling_rate": 44100, "b_frames": 2},
    "FLV": {"container": "flv", "sampling_rate": 44100},
    "ASF / WMV": {"container": "asf", "sampling_rate": 44100},
    "MPEG transport stream": {"container": "mpegts"},
    "MPEG program stream (MPEG-2, MP2)": {
        "container": "mpeg", "video_codec": "mpeg2video", "audio_codec": "mp2", "sampling_rate": 48000,
    },
    "MXF": {"container": "mxf", "video_codec": "mpeg2video", "audio_codec": "pcm_s16le", "sampling_rate": 48000},
    "raw H.264": {"container": "h264", "b_frames": 2, **WITHOUT_SOUND},
    "GIF": {"container": "gif", "video_codec": "gif", "pix_fmt": "rgb8", **WITHOUT_SOUND},
    "WAV": {"container": "wav", "audio_codec": "pcm_s16le", **SOUND_ONLY},
    "WAV of 11,127 Hz": {"container": "wav", "audio_codec": "pcm_s16le", "sampling_rate": 11127, **SOUND_ONLY},
    "FLAC": {"container": "flac", "audio_codec": "flac", **SOUND_ONLY},
    "MP3": {"container": "mp3", "audio_codec": "libmp3lame", "sampling_rate": 44100, **SOUND_ONLY},
    "Ogg (Opus)": {"container": "ogg", "audio_codec": "libopus", "sampling_rate": 48000, **SOUND_ONLY},
    "AIFF": {"container": "aiff", "audio_codec": "pcm_s16be", **SOUND_ONLY},
}  # fmt: skip
PLAIN = render_clip()
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"
SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n"

TABLES: dict[str, dict[str, Call]] = {
    "Media files": {name: clip(**arguments) for name, arguments in CONTAINERS.items()},
    "Files that are odd or damaged": {
        "a picture track alone": clip(audio=None),
        "tags that are not UTF-8": file(
            lambda: render_clip(container="mov", audio_codec="pcm_s16le").replace(b"VideoHandler", b"Vid\xe9oHandler")
        ),
        "picture turned by 90 degrees": clip(rotation=90, size=(96, 64)),
        "sound starts 0.5 s late": clip(audio_start=0.5),
        "stereo in opposite phase": clip(audio="antiphase", channels=2),
        "written to a pipe, without a duration": clip(container="matroska", live=True),
        "two transport streams joined": twice(container="mpegts"),
        "two chained Ogg files": twice(container="ogg", audio_codec="vorbis", channels=2, **SOUND_ONLY),
        "two MP3 files joined, each with its tag": twice(
            container="mp3", audio_codec="libmp3lame", sampling_rate=44100, **SOUND_ONLY
        ),
        "two MP4 files joined": twice(),
        "two FLAC files joined": twice(container="flac", audio_codec="flac", **SOUND_ONLY),
        "MP4 that is cut off": file(truncated(faststart(), 0.7), start=0.8),
        "the same with `on_decode_error='keep'`": file(truncated(faststart(), 0.7), start=0.8, on_decode_error="keep"),
        "MP4 that is cut off before its index": file(truncated(PLAIN, 0.5)),
        "flipped bits": file(bit_flipped(faststart(), first=0.3)),
        "WAV of 800,000 Hz": clip(container="wav", audio_codec="pcm_s16le", sampling_rate=800_000, num_frames=0, seconds=0.1),
        "animated WebP": clip(num_frames=5, container="webp", video_codec="libwebp_anim", audio=None),
        "an empty file": file(b""),
        "text": file(b"label,file\n0,a.mp4\n"),
    },
    "Content that names other files or addresses": {
        "playlist (m3u8)": named(".m3u8", PLAYLIST, "path"),
        "concatenation script": file(b"ffconcat version 1.0\nfile other.mp4\n"),
        "session description (SDP)": file(SDP),
        "address inside a row": file({"bytes": None, "path": "http://127.0.0.1/clip.mp4"}),
        "`file://` inside a row": file({"bytes": None, "path": "file:///etc/hostname"}),
    },
    "Ways to pass a file": {
        "path": named(".mp4", PLAIN, "path"),
        "bytes": file(PLAIN),
        "`io.BytesIO`": file(lambda: io.BytesIO(PLAIN)),
        "open file, mode `rb`": named(".mp4", PLAIN),
        "open file, mode `r+b` (FastAPI's `UploadFile.file`)": named(".mp4", PLAIN, "r+b"),
        "open file, mode `r`": named(".mp4", PLAIN, "r"),
        "row of datasets, `{'bytes', 'path'}`": file({"bytes": PLAIN, "path": "clip.mp4"}),
        "row with an unknown key": file({"path": "clip.mp4", "begin": 1.0}),
        "path that does not exist": file("missing.mp4"),
        "folder": file("."),
        "`num_frames=2`": file(PLAIN, num_frames=2),
        "`start=1.0, end=1.5`": file(PLAIN, start=1.0, end=1.5),
        "`start=10.0` in 2 s": file(PLAIN, start=10.0),
        "`input_data_format='channels_last'`": file(PLAIN, input_data_format="channels_last"),
        "misspelt `strat=1.0`": file(PLAIN, strat=1.0),
    },
    "Frames": {
        "uint8 [T, H, W, C] or [T, C, H, W]": frames(FRAMES),
        "a list of frames, or of PIL pictures": frames(lambda: pictures("RGB")),
        "grey, [T, H, W, 1]": frames(FRAMES[..., :1]),
        "float, 0 to 255": frames(FRAMES.astype(np.float32)),
        "float, 0 to 1, with `do_rescale=False`": frames(FRAMES / 255, do_rescale=False),
        "float, 0 to 1": frames(FRAMES / 255),
        "float on the scale of 16 bits": frames(FRAMES * 257.0),
        "big-endian float, reversed in time": frames(FRAMES.astype(">f4")[::-1]),
        "uint16": frames(FRAMES.astype(np.uint16) * 257),
        "int64": frames(FRAMES.astype(np.int64)),
        "bool": frames(FRAMES > 127),
        "NaN": frames(np.full_like(FRAMES, np.nan, dtype=np.float32)),
        "PIL pictures L, P, CMYK, YCbCr or HSV": frames(lambda: pictures("P")),
        "PIL pictures RGBA, opaque": frames(lambda: pictures("RGBA")),
        "PIL pictures RGBA, transparent": frames(transparent),
        "PIL pictures I;16": frames([Image.fromarray(FRAMES[0, ..., 0].astype(np.uint16))] * 4),
        "a numpy masked array": frames(np.ma.masked_greater(FRAMES, 100)),
        "nested lists of numbers": frames(FRAMES.tolist()),
        "no frames": frames(FRAMES[:0]),
        "`start=1.0` with frames": frames(FRAMES, start=1.0),
    },
    "Sound": {
        "float [samples] with `sampling_rate=16000`": audio(WAVE, sampling_rate=16000),
        "the same without `sampling_rate`": audio(WAVE),
        "row of datasets, `{'array', 'sampling_rate'}`": audio({"array": WAVE, "sampling_rate": 16000, "path": "a.wav"}),
        "row of another rate": audio({"array": WAVE, "sampling_rate": 44100}),
        "row of another rate, `do_resample=True`": audio({"array": WAVE, "sampling_rate": 44100}, do_resample=True),
        "float64, float16 or big-endian": audio(WAVE.astype(">f8"), sampling_rate=16000),
        "int16": audio((WAVE * 32767).astype(np.int16), sampling_rate=16000),
        "float on the scale of 16 bits": audio(WAVE * 32767, sampling_rate=16000),
        "stereo, [2, samples]": audio(np.stack([WAVE, WAVE]), sampling_rate=16000),
        "NaN": audio(WAVE * np.nan, sampling_rate=16000),
        "longer than the window": audio(np.tile(WAVE, 3), sampling_rate=16000),
        "no samples": audio(WAVE[:0], sampling_rate=16000),
        "shorter than the window": audio(WAVE[:800], sampling_rate=16000),
    },
    "Inputs of a model": {
        "those of its processor": model(),
        "uint8 `pixel_values`": model(pixel_values=torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)),
        "numpy `pixel_values`": model(pixel_values=np.zeros((1, 4, 3, 16, 16), np.float32)),
        "frames of another size": model(pixel_values=torch.zeros(1, 4, 3, 32, 32)),
        "another number of frames": model(pixel_values=torch.zeros(1, 8, 3, 16, 16)),
        "unequal batches": model(pixel_values=torch.zeros(2, 4, 3, 16, 16)),
        "misspelt `input_values=`": model(input_values=torch.zeros(1, 32, 16)),
        "`modality_mask` of a clip with neither": model(modality_mask=torch.zeros(1, 2, dtype=torch.bool)),
    },
}  # fmt: skip


@contextmanager
def warnings_of_the_package() -> Iterator[list[str]]:
    """Collects the messages that the package logs; those given once are given again."""
    for module in (array_inputs, feature_extraction_avfusion, video_processing_avfusion):
        if hasattr(module, "logger"):
            type(module.logger).warning_once.cache_clear()
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    package = logging.getLogger("hf_avfusion")
    package.addHandler(handler)
    try:
        yield messages
    finally:
        package.removeHandler(handler)


def shortened(message: str) -> str:
    """One line, without temporary folders, up to the end of the first sentence."""
    message = re.sub(r"/tmp\S*/", "", " ".join(message.split()))
    message = re.sub(r"media of \d+ bytes", "media of N bytes", re.sub(r"at byte \d+", "at byte N", message))
    message = re.sub(r"returned .*? up to [\d.]+ s, but [\d.]+ s", "returned N s, but N s", message)
    return re.split(r"(?<=[a-z0-9)])(?:\. |; )", message)[0].rstrip(".").replace("|", "\\|").replace("][", "]\\[")


def outcome(call: Call) -> str:
    """What a call gave: the shapes of the tensors, the warnings, or the error."""
    with warnings_of_the_package() as messages:
        try:
            result = call()
        except (ValueError, TypeError) as error:
            return f"refused: {shortened(str(error))}"
    names = [f"`{name}` {list(value.shape)}" for name, value in (result or {}).items()]
    absent = [text for text in messages if "this modality is absent" in text]
    stated = [shortened(text) for text in dict.fromkeys(messages) if text not in absent]
    text = f"read: {', '.join(names)}" if names else "read"
    return f"{text}; warning: {'; '.join(stated)}" if stated else text


def page() -> str:
    text = HEAD
    for title, calls in TABLES.items():
        rows = "\n".join(f"| {name} | {outcome(call)} |" for name, call in calls.items())
        text += f"\n## {title}\n\n| given | result |\n|---|---|\n{rows}\n"
    return text


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    PAGE.write_text(page(), encoding="utf-8")
