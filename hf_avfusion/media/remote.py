"""Reads media files from addresses, with limits on time and size, and without redirects into the local network."""

import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import Any, BinaryIO

# Limits for all reads of one open file. Seeks skip what is not needed, so a long video takes only a part of its size.
MAX_SECONDS = 120.0
MAX_BYTES = 2**32
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0  # longest wait for the next bytes


def is_address(path: str) -> bool:
    """Whether a path is an address (URL) and not a local path."""
    return "://" in path


class BoundedFile:
    """A binary file object that raises when the limits are reached. fsspec's own files have neither."""

    def __init__(self, opened: BinaryIO):
        self._opened = opened
        self._bytes, self._seconds = 0, 0.0

    def read(self, size: int = -1) -> bytes:
        began = time.monotonic()
        data = self._opened.read(size if size >= 0 else MAX_BYTES + 1)
        self._seconds += time.monotonic() - began
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            raise OSError(f"more than the {MAX_BYTES:,} bytes that are read of one address; download the file first")
        if self._seconds > MAX_SECONDS:
            raise OSError(f"more than the {MAX_SECONDS:g} s that one address may take; download the file first")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._opened.seek(offset, whence)

    def tell(self) -> int:
        return self._opened.tell()

    def seekable(self) -> bool:
        return self._opened.seekable()

    def close(self) -> None:
        self._opened.close()


def http_options(url: str) -> dict[str, Any]:
    """Arguments of `fsspec.open`. For HTTP: a client with time limits that refuses redirects to local addresses."""
    if not url.lower().startswith(("http://", "https://")):
        return {}
    try:
        import aiohttp
        from yarl import URL
    except ImportError:  # fsspec names the package that is missing
        return {}

    named = URL(url).raw_host

    class Resolver(aiohttp.ThreadedResolver):
        """Checks the addresses that are connected to, since a name may resolve differently each time."""

        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list:
            found = await super().resolve(host, port, family)
            if host != named:
                _check_public(host, [each["host"] for each in found])
            return found

    async def check_redirect(session: Any, context: Any, params: Any) -> None:
        headers = params.response.headers
        target = params.url.join(URL(headers.get("Location") or headers.get("URI") or "")).host or ""
        try:
            found = [ipaddress.ip_address(target).compressed]  # the resolver is not asked
        except ValueError:
            resolved = await aiohttp.ThreadedResolver().resolve(target, family=socket.AF_UNSPEC)
            found = [each["host"] for each in resolved]
        _check_public(target, found)

    async def client(**options: Any) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(check_redirect)
        timeout = aiohttp.ClientTimeout(
            total=MAX_SECONDS,
            sock_connect=min(CONNECT_SECONDS, MAX_SECONDS),
            sock_read=min(SILENT_SECONDS, MAX_SECONDS),
        )
        connector = aiohttp.TCPConnector(resolver=Resolver())
        return aiohttp.ClientSession(trace_configs=[trace], connector=connector, timeout=timeout, **options)

    return {"get_client": client, "skip_instance_cache": True}


def _check_public(host: str, addresses: Iterable[str]) -> None:
    local = [each for each in addresses if not ipaddress.ip_address(each.partition("%")[0]).is_global]
    if local:
        raise OSError(
            f"it redirects to {host} ({local[0]}), an address of the local network, which is not followed; pass that address "
            "itself"
        )
