"""Finds misspelt names among those that transformers would keep or ignore without a word."""

import difflib
from collections.abc import Iterable


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


__all__ = ["check_spelling"]
