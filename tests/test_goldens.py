"""
Recorded cases of the originals: one test per `<arch>/<case>.json` under each root in HF_AVFUSION_GOLDENS.

An architecture is collected when tests/checkers/<arch>.py stands; its `check(folder, case)` runs one case and fails on a
kind it does not know. Nothing is skipped.
"""

import importlib
import json
import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DEFAULT_ROOTS = [TESTS / "goldens", TESTS.parent.parent / "shared" / "goldens"]


def _roots() -> list[Path]:
    named = os.environ.get("HF_AVFUSION_GOLDENS")
    if named is None:
        return [root for root in DEFAULT_ROOTS if root.is_dir()]
    roots = [Path(root) for root in named.split(os.pathsep) if root]
    missing = [str(root) for root in roots if not root.is_dir()]
    if missing:
        raise FileNotFoundError(f"HF_AVFUSION_GOLDENS names folders that do not exist: {missing}")
    return roots


def _cases() -> list:
    architectures = sorted(path.stem for path in (TESTS / "checkers").glob("*.py"))
    found: dict[tuple[str, bytes], object] = {}
    for root in _roots():
        for architecture in architectures:
            for path in sorted((root / architecture).glob("*.json")):
                # A case that was copied from one root to another is one case.
                case = pytest.param(path.parent, path.stem, id=f"{architecture}/{path.stem}")
                found.setdefault((f"{architecture}/{path.stem}", path.read_bytes()), case)
    return list(found.values())


@pytest.mark.parametrize(("folder", "case"), _cases())
def test_golden(folder: Path, case: str) -> None:
    checker = importlib.import_module(f"checkers.{folder.name}")
    checker.check(folder, json.loads((folder / f"{case}.json").read_text(encoding="utf-8")), case)
