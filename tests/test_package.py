"""The house rules that a machine can check: what may import what, what importing costs, what the metadata promises."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_avfusion"
# Rooms from the bottom of the house to its top; a file imports from rooms below its own, and from its own. `metrics` and
# `files` import nothing of ours. `auto` names all classes by strings and loads them when they are used, so any room may use it.
LEVELS = {
    "metrics": 0, "files": 0, "lazy_registration": 0, "arguments": 0, "media": 0, "processing": 1, "models": 2,
    "tasks": 3, "adapters": 3, "visualization": 3, "conversion": 3,
    "data": 4, "evaluation": 5, "training": 6, "model_card": 7, "hub": 8, "commands": 9,
}  # fmt: skip
TRAVELLING = sorted(file for room in ("media", "processing", "models") for file in (PACKAGE / room).rglob("*.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """media/reader.py -> media.reader, models/mbt/__init__.py -> models.mbt, hf_avfusion/__init__.py -> the empty name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported_modules(path: Path) -> set[str]:
    """Names below hf_avfusion of the modules that a file imports, also inside functions; not those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            node.body = []
    folder = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            parts = folder.split(".") if folder else []
            base = parts[: len(parts) - node.level + 1]
        elif node.module.split(".")[0] == "hf_avfusion":
            base = []
        else:
            continue
        module = (
            (node.module or "").removeprefix("hf_avfusion").removeprefix(".") if not node.level else node.module or ""
        )
        base = [*base, *(module.split(".") if module else [])]
        for alias in node.names:
            whole = ".".join([*base, alias.name])
            found.add(whole if whole in NAMES else ".".join(base))
    return found - {""}


NAMES = {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_between_rooms_run_downwards(path):
    room = name_of(path).split(".")[0]
    if room in ("", "auto"):
        return
    for imported in imported_modules(path):
        other = imported.split(".")[0]
        if other in (room, "auto"):
            continue
        assert LEVELS[other] < LEVELS[room], f"{name_of(path)} imports {imported}, which is not in a room below"
        assert room not in ("metrics", "files"), (
            f"{name_of(path)} imports {imported}: metrics and files import nothing of ours"
        )


def test_no_module_imports_itself_through_others():
    waiting = {name_of(path): imported_modules(path) & NAMES - {"auto"} for path in MODULES if name_of(path) != "auto"}
    while free := {name for name, needed in waiting.items() if not needed & waiting.keys()}:
        waiting = {name: needed for name, needed in waiting.items() if name not in free}
    assert not waiting, (
        f"in circles, or above one: { {name: sorted(needed & waiting.keys()) for name, needed in waiting.items()} }"
    )


def imports(path: Path) -> list[tuple[int, int, str, list[str]]]:
    """(line, relative level, module, names) of every import of a file, nested ones too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.level, node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found.extend((node.lineno, 0, alias.name, []) for alias in node.names)
    return found


@pytest.mark.parametrize("path", TRAVELLING, ids=name_of)
def test_files_that_travel_import_only_each_other(path):
    """hub.export rewrites `from ..room.name import x` to `from .name import x`, and copies what such lines name."""
    for line, level, module, _names in imports(path):
        where = f"{path.name}:{line}"
        if level == 0:
            assert module.split(".")[0] != "hf_avfusion", f"{where} imports the package by name"
        else:
            assert path.name != "__init__.py", f"{where}: an __init__.py does not travel, so it stays empty"
            imported = path.parents[level - 1].joinpath(*module.split(".")).with_suffix(".py")
            assert module, f"{where}: write `from .name import x`"
            assert imported in TRAVELLING, f"{where} imports {module}, which does not travel"


def test_files_that_travel_have_names_of_their_own():
    """In an exported folder they lie side by side."""
    names = [path.name for path in TRAVELLING if path.name != "__init__.py"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", TRAVELLING, ids=name_of)
def test_modeling_files_do_not_postpone_annotations(path):
    """`from __future__ import annotations` turns `config: XConfig` into a string, which the Auto classes cannot read."""
    assert not any(module == "__future__" for _, _, module, _ in imports(path)) or not path.stem.startswith("modeling")


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


@pytest.mark.slow
def test_arrays_and_models_need_no_media_or_dataset_library(tmp_path):
    """A machine that only computes has torch and transformers; av, datasets and evaluate are for files and benchmarks."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "import numpy as np\n"
        "import hf_avfusion\n"
        "processor = hf_avfusion.MBTProcessor(num_frames=2)\n"
        "frames, waveform = np.zeros((2, 300, 280, 3), np.uint8), np.ones(128000, np.float32)\n"
        "inputs = processor(videos=frames, audio=waveform, sampling_rate=16000, return_tensors='pt')\n"
        "sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_frames=2)\n"
        "mbt = hf_avfusion.MBTForAudioVisualClassification(hf_avfusion.MBTConfig(**sizes, num_labels=3))\n"
        "decoder = dict(decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=1)\n"
        "avmae = hf_avfusion.AVMAEForPreTraining(hf_avfusion.AVMAEConfig(**sizes, **decoder))\n"
        "assert not {'av', 'datasets', 'evaluate', 'torchcodec'} & sys.modules.keys()\n"
        "print(*mbt(**inputs).logits.shape, *avmae(**inputs).video_predictions.shape)"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "without.py", "av,datasets,evaluate,torchcodec", script],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "3", "1", "196", "1536"]


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


@pytest.mark.slow
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


def test_every_package_is_listed():
    """`packages` is a list, since `find:` cannot add the cards from the top of the repository."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(metadata["options"]["packages"].split()) == {*folders, "hf_avfusion.model_cards"}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wheel", "editable", "clone"])
def test_cards_and_labels_are_found(way, tmp_path):
    """Installed from a wheel, installed for editing, or not installed; none of the files is a link."""
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("hf_avfusion", "model_cards", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    assert not [path for path in source.rglob("*") if path.is_symlink()]
    if way == "clone":
        site = source
    else:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site]
        done = subprocess.run(
            [*pip, *(["-e"] if way == "editable" else []), source], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    code = (  # -ES: without PYTHONPATH and the links that another editable installation of the package left in this environment
        f"import site, sys; site.addsitedir({str(site)!r}); sys.path += {packages!r}\n"
        "import hf_avfusion\n"
        "from hf_avfusion.data.benchmarks.records import read_labels\n"
        "from hf_avfusion.model_card import CARDS\n"
        "print(hf_avfusion.__file__, (CARDS / 'mbt.md').is_file(), len(read_labels('vggsound')))"
    )
    done = subprocess.run(
        [sys.executable, "-ES", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    place = site if way == "wheel" else source
    assert done.stdout.split() == [str(place / "hf_avfusion" / "__init__.py"), "True", "309"]
