"""The house rules that a machine can check: what may import what, what importing costs, what the metadata promises."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_avfusion"
MODELS = sorted((PACKAGE / "models").glob("*.py"))


def imports(path: Path) -> list[tuple[int, int, str, list[str]]]:
    """(line, relative level, module, names) of every import of a file, nested ones too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.level, node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found.extend((node.lineno, 0, alias.name, []) for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_files_that_travel_import_only_third_parties_and_siblings(path):
    """save_pretrained copies siblings reached by `from .name import x` into the checkpoint; nothing else travels."""
    siblings = {file.stem for file in MODELS}
    for line, level, module, _names in imports(path):
        where = f"{path.name}:{line}"
        if level == 0:
            assert module.split(".")[0] != "hf_avfusion", f"{where} imports the package by name"
        else:
            assert level == 1, f"{where} reaches out of models/"
            assert module in siblings, f"{where}: `from .{module}` is no sibling file (write `from .name import x`)"
            assert path.name != "__init__.py", f"{where}: models/__init__.py stays empty"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_modeling_files_do_not_postpone_annotations(path):
    """`from __future__ import annotations` turns `config: XConfig` into a string, which the Auto classes cannot read."""
    assert not any(module == "__future__" for _, _, module, _ in imports(path)) or not path.stem.startswith("modeling")


def test_models_is_flat():
    assert not [path for path in (PACKAGE / "models").iterdir() if path.is_dir() and path.name != "__pycache__"]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_needs_no_optional_library():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torchcodec', 'matplotlib'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import hf_avfusion\n"
        "from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('mbt').hidden_size)"
    )
    assert run(code) == "768"


def test_import_loads_nothing_heavy_beyond_auto_model():
    """What costs time to import (model classes, plotting, metrics, datasets, decoders) waits until it is used."""
    heavy = [
        "accelerate",
        "av",
        "datasets",
        "evaluate",
        "matplotlib",
        "msgpack",
        "peft",
        "scipy",
        "sklearn",
        "torchcodec",
    ]
    heavy += [
        "torchaudio",
        "torchvision",
        "torch._dynamo",
        "transformers.modeling_utils",
        "transformers.processing_utils",
    ]
    code = (
        "import sys\n"
        "from transformers import AutoModel\n"
        "before = set(sys.modules)\n"
        "import hf_avfusion\n"
        f"print([name for name in {heavy!r} if name in sys.modules and name not in before])"
    )
    assert run(code) == "[]"


@pytest.mark.parametrize(
    "first", ["import hf_avfusion", "from transformers import AutoProcessor, AutoFeatureExtractor"]
)
def test_registration_works_whichever_is_imported_first(first, tmp_path):
    """Registration waits for transformers' heavy modules, or finds them imported already."""
    code = (
        f"{first}\n"
        "import hf_avfusion\n"
        "from transformers import AutoConfig, AutoModel, AutoProcessor, AutoVideoProcessor, AutoFeatureExtractor\n"
        f"folder = {str(tmp_path)!r}\n"
        "sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)\n"
        "config = AutoConfig.for_model('mbt', num_frames=2, spectrogram_length=16, num_mel_bins=16, **sizes)\n"
        "model = AutoModel.from_config(config)\n"
        "model.save_pretrained(folder)\n"
        "hf_avfusion.MBTProcessor().save_pretrained(folder)\n"
        "autos = (AutoModel, AutoProcessor, AutoVideoProcessor, AutoFeatureExtractor)\n"
        "assert AutoModel._model_mapping[type(config)] is hf_avfusion.MBTModel\n"
        "print(*[type(auto.from_pretrained(folder)).__name__ for auto in autos])"
    )
    assert run(code) == "MBTModel MBTProcessor AVFusionVideoProcessor AVFusionFeatureExtractor"


def test_public_names_exist_and_are_found_by_completion():
    import hf_avfusion

    for name in hf_avfusion.__all__:
        assert getattr(hf_avfusion, name).__name__ if name != "BENCHMARKS" else hf_avfusion.BENCHMARKS
        assert name in dir(hf_avfusion)
    with pytest.raises(AttributeError, match="no attribute 'MBTConfg'"):
        hf_avfusion.MBTConfg  # noqa: B018


def test_metadata_holds_the_tested_bounds():
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    requirements = metadata["options"]["install_requires"].split()
    assert "torch>=2.11,<2.15" in requirements  # torchaudio 2.11 does not import beside newer CUDA builds
    assert "torchaudio>=2.11,<2.12" in requirements
    assert {"test", "torchcodec", "demo"} <= set(metadata["options.extras_require"])
    assert (PACKAGE / "py.typed").exists()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
