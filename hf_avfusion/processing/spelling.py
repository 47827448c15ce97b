"""Finds misspelt names among those that transformers would keep or ignore without a word."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any


def check_spelling(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError for a given name that is not known but close to a known one. Others may belong to transformers or the Hub.

    Args:
        owner: the class that was given the names, for the message.
        given: names of arguments.
        known: names that the class uses.
    """
    known = set(known)
    for name in given:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8) if name not in known else []
        if close and not name.startswith("_"):
            raise TypeError(f"{owner} has no field {name}; did you mean {close[0]}?")


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], nested: Mapping[str, Iterable[str]]) -> None:
    """Raises TypeError for an unknown argument of a call; transformers only warns and ignores it.

    Args:
        given: the arguments by name.
        known: names of arguments.
        nested: names of arguments that are mappings, and the entries that each may have.
    """
    for name, value in given.items():
        if name in nested:
            unknown = sorted(set(value) - set(nested[name]))
            if unknown:
                raise TypeError(
                    f"{name} has unknown entries {', '.join(unknown)}; known: {', '.join(sorted(nested[name]))}"
                )
        elif name not in known:
            raise TypeError(f"unknown keyword argument {name}={reprlib.repr(value)}; known: {', '.join(sorted(known))}")


__all__ = ["check_spelling", "refuse_unknown"]
