"""Media sources: paths with awkward names, bytes, file objects, pipes, URLs, and sources that are not media."""

import functools
import http.server
import io
import os
import threading

import numpy as np
import pytest
import torch
from rendering import read_numbers, render_clip, truncated

from hf_avfusion.media.reader import MediaError, probe, read_clip


@functools.cache
def plain() -> bytes:
    """50 numbered frames at 25 per second and 2 s of audio at 16 kHz."""
    return render_clip()


@pytest.mark.parametrize("name", ["-dash.mp4", "with space é.mp4", "co:lon.mp4", "http:..mp4", "per%20cent.mp4"])
def test_awkward_names(tmp_path, monkeypatch, name):
    render_clip(tmp_path / name, num_frames=5)
    monkeypatch.chdir(tmp_path)
    assert read_numbers(read_clip(name, frame_times=[0.08]).frames) == [2]
    assert read_numbers(read_clip(tmp_path / name, frame_times=[0.08], backend="auto").frames) == [2]


def test_bytes_memory_and_file_objects(tmp_path):
    path = render_clip(tmp_path / "clip.mp4")
    data = path.read_bytes()
    expected = read_clip(path, frame_times=[1.0]).frames
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), os.fspath(path)):
        assert torch.equal(read_clip(source, frame_times=[1.0]).frames, expected)
    with path.open("rb") as opened:
        opened.seek(100)  # read from its start, whatever its position
        assert torch.equal(read_clip(opened, frame_times=[1.0]).frames, expected)
        assert not opened.closed
        assert read_clip(opened, frame_times=[1.0]).info.name == str(path)


def test_a_pipe_that_cannot_seek():
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.rest = io.BytesIO(plain())

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.rest.readinto(buffer)

    assert read_numbers(read_clip(Pipe(), frame_times=[1.0]).frames) == [25]


@pytest.fixture
def server(tmp_path):
    """Address of a web server (without range requests) of a folder that holds clip.mp4."""
    render_clip(tmp_path / "clip.mp4")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


def test_urls(tmp_path, server):
    import fsspec

    with fsspec.open("memory://clip.mp4", "wb") as target:
        target.write(plain())
    path = render_clip(tmp_path / "clip.mp4")
    for url in ("memory://clip.mp4", f"file://{path}", f"{server}/clip.mp4"):
        assert read_numbers(read_clip(url, frame_times=[1.0]).frames) == [25]
    missing = f"{server}/none.mp4"
    with pytest.raises(MediaError, match=r"none\.mp4.*(404|exist)"):
        read_clip(missing, frame_times=[0.0])
    with pytest.raises(MediaError, match="unknown-protocol"):
        read_clip("unknown-protocol://clip.mp4", frame_times=[0.0])


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("empty.mp4", lambda: b"", "empty"),
        ("text.mp4", lambda: b"this is no media file\n" * 20, "cannot be opened"),
        ("junk.mp4", lambda: np.random.default_rng(0).bytes(5000), "cannot be opened|neither"),
        ("no_moov.mp4", lambda: truncated(plain(), 0.6), "cannot be opened"),
    ],
)
def test_unreadable_sources_name_file_and_cause(tmp_path, name, data, cause):
    (tmp_path / name).write_bytes(data())
    for read in (probe, functools.partial(read_clip, frame_times=[0.0])):
        with pytest.raises(MediaError, match=cause) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert caught.value.source.endswith(name)
    with pytest.raises(MediaError, match="row 7"):
        read_clip(data(), frame_times=[0.0], name="row 7")


def test_missing_and_unsupported_sources(tmp_path):
    with pytest.raises(MediaError, match=r"nothing\.mp4: cannot be opened: No such file"):
        read_clip(tmp_path / "nothing.mp4", frame_times=[0.0])
    with pytest.raises(MediaError, match="is a directory"):
        read_clip(tmp_path, frame_times=[0.0])
    (tmp_path / "text.mp4").write_text("x")
    with (tmp_path / "text.mp4").open() as opened, pytest.raises(MediaError, match="'rb'"):
        read_clip(opened, frame_times=[0.0])
    with pytest.raises(TypeError, match="ndarray"):
        read_clip(np.zeros(3), frame_times=[0.0])
