"""Media sources: opens a path, URL, bytes or file object for the demuxer and gives it a printable name."""

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from .remote import BoundedFile, http_options, is_address

# First bytes of MP4 files as encoders write them: box and major brand. There are hundreds of brands, also of image formats.
ISO_MEDIA = {
    b"ftyp" + brand for brand in (b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4A ")
}

VIDEO_SUFFIXES = ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .ogv .flv .wmv .3gp .vob"
AUDIO_SUFFIXES = ".wav .flac .mp3 .m4a .aac .ogg .opus"  # a clip may lack either track
MEDIA_SUFFIXES = frozenset(f"{VIDEO_SUFFIXES} {AUDIO_SUFFIXES}".split())

# Protocols of the addresses that rows may hold with allow_urls=True. fsspec knows others, some of which read local files.
ROW_PROTOCOLS = ("http", "https", "hf", "s3", "gs", "gcs", "az", "abfs")

MediaSource = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO


class MediaError(ValueError):
    """A media source cannot be read. `source` is its printable name, `cause` the reason."""

    def __init__(self, source: str, cause: str = ""):
        super().__init__(source, cause)
        self.source = source
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.source}: {self.cause}" if self.cause else self.source


def check_regular_file(path: str | os.PathLike, name: str) -> None:
    """Raises MediaError if a path is not that of an existing regular file. To open a pipe may block for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL, or a character that file names cannot hold
        raise MediaError(name, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        raise MediaError(name, "is a directory, not a media file")
    if not stat.S_ISREG(mode):
        raise MediaError(name, "is a pipe or a device, not a regular file; open it and pass the file object")


def check_row_path(path: str | os.PathLike, allow_urls: bool) -> None:
    """Checks the path of a row, which is untrusted: only with `allow_urls` it may be an address, but never of a
    local file.

    Raises:
        MediaError: it is an address that is not allowed.
    """
    path = os.fsdecode(path)
    if not is_address(path):
        return
    if not allow_urls:
        raise MediaError(
            path,
            "is an address inside a row, which is not fetched; download the clip, pass the address itself instead of a row, or "
            "pass allow_urls=True (--allow_urls) if you trust the rows",
        )
    if "::" in path or path.partition("://")[0].lower() not in ROW_PROTOCOLS:
        raise MediaError(
            path,
            f"is an address that a row may not hold, even with allow_urls; use one of {', '.join(ROW_PROTOCOLS)}, or a plain "
            "path for a local file",
        )


def one_line(error: BaseException) -> str:
    """The message of an error on one line, or the name of its class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


class OpenSource:
    """A media source with a printable name, which can be opened for the demuxer repeatedly."""

    def __init__(self, source: MediaSource, name: str | None):
        self._owned: list[Any] = []
        self._data: bytes | bytearray | memoryview | None = None
        self._path: str | None = None
        self._file: BinaryIO | None = None
        self._is_url = False
        if isinstance(source, (bytes, bytearray, memoryview)):
            self._data, self.name = source, name or f"media of {len(source)} bytes"
            if not len(source):
                raise MediaError(self.name, "is empty (zero bytes)")
        elif isinstance(source, (str, os.PathLike)):
            path = os.fsdecode(source)
            self.name = name or path
            self._is_url = is_address(path)
            if path.startswith(("file://", "local://")):
                from fsspec.implementations.local import LocalFileSystem

                self._path = self._local(LocalFileSystem._strip_protocol(path))
            elif self._is_url:
                self._file = self._remote(path)
            else:
                self._path = self._local(path)
        elif hasattr(source, "read"):
            self.name = name or (source.name if isinstance(getattr(source, "name", None), str) else "media file object")
            if isinstance(source, io.TextIOBase):
                raise MediaError(self.name, "is a file opened as text; open it with mode 'rb'")
            self._file = self._seekable(source)
        else:
            raise TypeError(
                f"got a {type(source).__name__} as media source; it must be a path, a URL, bytes or a binary file object. "
                "Pass decoded frames and waveforms to the processor directly"
            )

    def _local(self, path: str) -> str:
        check_regular_file(path, self.name)
        if os.path.getsize(path) == 0:
            raise MediaError(self.name, "is empty (zero bytes)")
        # FFmpeg would read "http:a.mp4" as a protocol.
        return "file:" + path

    def _remote(self, url: str) -> BinaryIO:
        import fsspec

        try:
            opened = BoundedFile(fsspec.open(url, mode="rb", **http_options(url)).open())
        except FileNotFoundError as error:
            # fsspec's HTTP raises this for every failure; only its cause distinguishes a refused connection from a missing file.
            why = (
                f"{type(error.__cause__).__name__}: {one_line(error.__cause__)}" if error.__cause__ else one_line(error)
            )
            raise MediaError(self.name, f"does not exist, or cannot be reached ({why})") from error
        except ImportError as error:
            raise MediaError(self.name, f"this kind of URL needs another package: {one_line(error)}") from error
        except Exception as error:  # fsspec passes on the errors of each protocol's library
            raise MediaError(self.name, f"cannot be fetched: {type(error).__name__}: {one_line(error)}") from error
        self._owned.append(opened)
        try:
            return self._seekable(opened)
        except MediaError:
            self.close()
            raise

    def _seekable(self, opened: BinaryIO) -> BinaryIO:
        seekable = getattr(opened, "seekable", None)
        if seekable is not None and seekable():
            return opened
        spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the source) - pipes are buffered on disk
        self._owned.append(spool)
        try:
            while block := opened.read(1 << 20):
                spool.write(block)
        except Exception as error:
            raise MediaError(self.name, f"cannot be read: {type(error).__name__}: {one_line(error)}") from error
        return spool

    def open(self) -> str | BinaryIO:
        """The argument for av.open, positioned at its start."""
        if self._path is not None:
            return self._path
        if self._data is not None:
            return io.BytesIO(self._data)
        self._file.seek(0)
        return self._file

    @contextlib.contextmanager
    def peek(self) -> Iterator[BinaryIO | None]:
        """The source for reading single bytes, without effect on what opened it before. None where that is not cheap: of pipes and
        URLs.
        """
        if self._is_url:
            yield None
        elif self._file is not None:
            place = self._file.tell()
            try:
                yield self._file
            finally:
                self._file.seek(place)
        elif self._data is not None:
            yield io.BytesIO(self._data)
        elif os.path.isfile(path := self._path.removeprefix("file:")):
            with open(path, "rb") as file:
                yield file
        else:
            yield None

    @property
    def protocol(self) -> str:
        """The only FFmpeg protocol that may be opened; "none" if Python reads the bytes."""
        return "file" if self._path is not None else "none"

    @property
    def known_format(self) -> str | None:
        """FFmpeg's container name, if the first bytes in memory identify it; None: FFmpeg has to probe. Probing takes a seventh
        of the time of opening a short clip.
        """
        return "mp4" if self._data is not None and bytes(self._data[4:12]) in ISO_MEDIA else None

    def for_torchcodec(self) -> str | bytes | BinaryIO:
        """The argument for torchcodec, which does not know the "file:" prefix; see `shared`."""
        if self._path is not None:
            return os.path.abspath(self._path.removeprefix("file:"))
        return bytes(self._data) if self._data is not None else self.open()

    @property
    def shared(self) -> bool:
        """Whether everything that opened the source reads from one file object and moves its position."""
        return self._file is not None

    def close(self) -> None:
        for owned in self._owned:
            owned.close()
        self._owned.clear()
