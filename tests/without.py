"""Runs a script as if some libraries were not installed: python tests/without.py av,datasets script.py [arguments].

`importlib.util.find_spec` finds nothing of them, and importing them raises ModuleNotFoundError.
"""

import runpy
import sys
from typing import Any


class Hiding:
    """A finder of sys.meta_path that does not see some libraries."""

    def __init__(self, finder: Any, hidden: set[str]):
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.split(".")[0] in self._hidden else self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:  # find_distributions, invalidate_caches
        return getattr(self._finder, name)


def main() -> None:
    hidden = set(sys.argv[1].split(","))
    sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
