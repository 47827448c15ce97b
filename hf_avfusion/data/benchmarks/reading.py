"""Calls functions that read a folder, once for all splits where a command loads several."""

from collections.abc import Callable
from functools import cache
from typing import Any


def read(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function: the default `read` of the loading functions."""
    return function(*arguments)


def read_once() -> Callable[..., Any]:
    """Returns a `read` that keeps results. Pass it to the calls of one command, since it does not see later changes of files."""
    return cache(read)
