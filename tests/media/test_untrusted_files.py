"""Untrusted contents and addresses: FFmpeg opens only the bytes that it is given, and rows open only local files."""

import contextlib
import functools
import http.server
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from rendering import read_numbers, render_clip

from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.media import remote
from hf_avfusion.media.container import FORMATS
from hf_avfusion.media.reader import MediaError, probe, read_clip
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor

TIMES = {"frame_times": [0.0], "audio_window": (0.0, 0.5)}


class Server(http.server.ThreadingHTTPServer):
    """Answers with `answer(handler)` and records the paths that were asked for."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]):
        self.asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.server.asked.append(self.path)
                with contextlib.suppress(ConnectionError):
                    answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[Server]:
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@functools.cache
def plain() -> bytes:
    return render_clip(num_frames=25)


def clip_answer(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(plain())))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(plain())


class Named(io.BytesIO):
    """A file object with a name."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


def sources(data: bytes, name: str, folder) -> list:
    (folder / name).write_bytes(data)
    return [data, io.BytesIO(data), Named(data, name), folder / name]


def untrusted_files(url: str, port: int) -> dict[str, bytes]:
    """Files that name others: an address, a port to listen on, or a local file `other.mp4`."""
    playlist = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}/low.m3u8\n#EXTINF:9,\n{url}/a.ts\n"
    )
    manifest = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:profile:isoff-on-'
        f'demand:2011"><Period><AdaptationSet><Representation id="1"><BaseURL>{url}/a.mp4</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    )
    session = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
    return {
        "x.m3u8": playlist.encode(),
        "x.mpd": manifest.encode(),
        "x.sdp": session.encode(),
        "local.ffconcat": b"ffconcat version 1.0\nfile other.mp4\n",
        "remote.ffconcat": f"ffconcat version 1.0\nfile {url}/a.mp4\n".encode(),
        "x.svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}/a.png"/></svg>'.encode(),
        "x.asx": f'<asx version="3.0"><entry><ref href="{url}/a.wmv"/></entry></asx>'.encode(),
        "x.ffmeta": b";FFMETADATA1\ntitle=x\n",
        "x.srt": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    }


@pytest.mark.parametrize("name", untrusted_files("", 0))
def test_no_content_opens_another_file_or_address(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.mp4").write_bytes(plain())
    with serving(clip_answer) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(0)
        for source in sources(untrusted_files(server.url, listener.getsockname()[1])[name], name, tmp_path):
            began = time.monotonic()
            for backend in ("pyav", "auto"):
                with pytest.raises(MediaError, match="cannot be opened as a media file"):
                    read_clip(source, backend=backend, **TIMES)
            with pytest.raises(MediaError, match="cannot be opened as a media file"):
                probe(source)
            assert time.monotonic() - began < 10  # SDP waited for 20 s
        assert server.asked == []
        with pytest.raises(BlockingIOError):
            listener.recv(1)


def test_the_error_of_a_refused_format_says_so():
    with pytest.raises(MediaError, match=r"its format is not read.*convert it"):
        probe(b"ffconcat version 1.0\nfile other.mp4\n")


def test_listed_formats_read_no_list_of_files():
    assert not {"hls", "dash", "concat", "sdp", "rtsp", "rtp", "image2", "lavfi", "vobsub", "svg_pipe"} & set(FORMATS)


@pytest.mark.parametrize(
    "signature", [b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n%s/a.ts\n", b"ffconcat version 1.0\nfile %s/a.ts\n"]
)
@pytest.mark.parametrize("container", ["mpegts", "mp4", "mpeg"])
def test_a_clip_behind_a_playlist_reaches_no_address(signature, container, torchcodec):
    """Older FFmpeg libraries under torchcodec would take it for the playlist."""
    with serving(clip_answer) as server:
        codec = (
            {"video_codec": "mpeg1video", "audio_codec": "mp2", "sampling_rate": 44100} if container == "mpeg" else {}
        )
        data = signature % server.url.encode() + render_clip(num_frames=25, container=container, **codec)
        for backend in ("auto", "torchcodec"):
            with contextlib.suppress(MediaError):
                read_clip(data, backend=backend, **TIMES)
        assert server.asked == []


# ---------------------------------------------------------------------------------------------------------- local paths


def test_pipes_and_impossible_names_raise_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match=r"pipe\.mp4: is a pipe or a device.*pass the file object"):
        probe(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="is a pipe or a device"):
        probe(f"file://{tmp_path}/pipe.mp4")
    with pytest.raises(MediaError, match="is a pipe or a device"):
        probe("/dev/zero")
    for name in ("a\0b.mp4", "\ud800.mp4", "a" * 5000):
        with pytest.raises(MediaError, match="cannot be opened"):
            probe(name)


# ------------------------------------------------------------------------------------------------------------- addresses


def redirect_to(target: Callable[[http.server.BaseHTTPRequestHandler], str]) -> Callable:
    def answer(handler):
        if handler.path == "/clip.mp4":
            return clip_answer(handler)
        handler.send_response(302)
        handler.send_header("Location", target(handler))
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return None

    return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0.0.0.0", "same"])
def test_redirects_to_local_addresses_are_not_followed(host):
    with serving(clip_answer) as other:

        def target(handler):
            return "/clip.mp4" if host == "same" else f"http://{host}:{other.server_port}/clip.mp4"

        with serving(redirect_to(target)) as server:
            with pytest.raises(MediaError, match=r"redirects to .* local network, which is not followed"):
                read_clip(f"{server.url}/moved.mp4", **TIMES)
            assert "/clip.mp4" not in server.asked
        assert other.asked == []


def test_link_local_addresses_are_not_followed():
    answer = redirect_to(lambda handler: "http://169.254.169.254/latest/meta-data")
    with serving(answer) as server, pytest.raises(MediaError, match=r"169\.254\.169\.254.*not followed"):
        probe(f"{server.url}/moved.mp4")


def test_an_address_that_never_answers_times_out(monkeypatch):
    monkeypatch.setattr(remote, "MAX_SECONDS", 0.5)
    finished = threading.Event()
    with serving(lambda handler: finished.wait(60)) as server:
        began = time.monotonic()
        with pytest.raises(MediaError, match=r"(?i)timeout"):
            probe(f"{server.url}/clip.mp4")
        assert time.monotonic() - began < 50
        finished.set()


def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Bytes without end, and without a stated length."""
    handler.send_response(200)
    handler.end_headers()
    while handler.command == "GET":
        handler.wfile.write(bytes(1000))
        time.sleep(0.001)


def test_an_endless_answer_ends_by_size_or_by_time(monkeypatch):
    with serving(trickle) as server:
        monkeypatch.setattr(remote, "MAX_BYTES", 100_000)
        with pytest.raises(MediaError, match=r"more than the 100,000 bytes .* download the file first"):
            probe(f"{server.url}/clip.mp4")
        monkeypatch.setattr(remote, "MAX_BYTES", 2**32)
        monkeypatch.setattr(remote, "MAX_SECONDS", 0.3)
        with pytest.raises(MediaError, match=r"(?i)timeout|more than the 0\.3 s"):
            probe(f"{server.url}/clip.mp4")


# --------------------------------------------------------------------------------------------------- addresses in rows


@pytest.fixture(scope="module")
def processor() -> MBTProcessor:
    return MBTProcessor(num_frames=2, span=0.5)


def rows(path: str) -> list[dict]:
    return [{"clip_id": "a", "video": {"bytes": None, "path": path}, "start": None, "end": None}]


def test_addresses_in_rows_are_fetched_only_if_allowed(processor):
    with serving(clip_answer) as server:
        address = f"{server.url}/clip.mp4"
        refused = ClipTransform(processor, ())
        with pytest.raises(MediaError, match=r"is an address inside a row.*allow_urls=True"):
            list(ClipStream(rows(address), refused, on_error="stop"))
        skipping = ClipStream(rows(address), refused)
        assert list(skipping) == []
        assert skipping.skipped == 1
        with pytest.raises(MediaError, match="inside a row"):
            list(ClipStream([{"clip_id": "a", "video": address}], refused, on_error="stop"))
        with pytest.raises(MediaError, match="inside a row"):
            processor(videos={"bytes": None, "path": address})
        assert server.asked == []
        (sample,) = ClipStream(rows(address), ClipTransform(processor, (), allow_urls=True), on_error="stop")
        assert sample["has_video"]
        assert "pixel_values" in processor(videos=address)
        assert read_numbers(read_clip(address, frame_times=[0.4]).frames) == [10]


@pytest.mark.parametrize(
    "path", ["file:///{}", "local://{}", "http://127.0.0.1:9/a::file:///{}", "memory://x.mp4", "git://{}"]
)
@pytest.mark.parametrize("allow_urls", [False, True])
def test_rows_never_name_local_files_by_address(tmp_path, processor, path, allow_urls):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(plain())
    transform = ClipTransform(processor, (), allow_urls=allow_urls)
    (sample,) = ClipStream(rows(str(clip)), transform, on_error="stop")
    assert sample["has_video"]
    with pytest.raises(MediaError, match="is an address"):
        list(ClipStream(rows(path.format(clip)), transform, on_error="stop"))
