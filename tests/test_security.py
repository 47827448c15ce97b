"""Untrusted files are only data: nothing is unpickled, no name leads out of its folder, no size exhausts the memory."""

import ast
import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from equality import assert_same_bits
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForVideoClassification, AutoProcessor
from travellers import INPUTS, SIZES, processor, traveller

import hf_avfusion
from hf_avfusion import AVFusionFeatureExtractor, AVFusionVideoProcessor, MBTConfig, MBTProcessor
from hf_avfusion.auto import ARCHITECTURES
from hf_avfusion.data.benchmarks.tar_shards import read_samples
from hf_avfusion.evaluation.costs import PeakMemory

PACKAGE = Path(hf_avfusion.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "boom")


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_evaluates_text(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            imported = {module, *(alias.name for alias in node.names)}
            assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in ("eval", "exec", "os.system"), node.lineno
        if called == "torch.load":
            assert options.get("weights_only") == "True", node.lineno
            reads = path.name in ("torch_files.py", "checkpoints.py")
            assert reads, "one function reads .pt files of originals, and resuming reads the optimiser's values"
        if called in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False", node.lineno
        if called.startswith("yaml."):
            assert called in ("yaml.safe_load", "yaml.safe_dump"), node.lineno
        assert not called.endswith((".extractall", ".extract", "unpack_archive")), node.lineno
        assert options.get("shell") != "True", node.lineno


def test_a_checkpoint_that_is_a_pickle_runs_nothing(tmp_path):
    model, its_processor = traveller("mbt")
    model.config.save_pretrained(tmp_path)
    its_processor.save_pretrained(tmp_path)
    torch.save({"classifier.weight": Bomb(tmp_path / "boom")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights_only|unpickl|unsupported"):
        AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert not (tmp_path / "boom").exists()


# Sizes that would take the machine down, one at a time and together.
ABSURD = [
    {"hidden_size": 2**40, "num_attention_heads": 1},
    {"num_hidden_layers": 10**9},
    {"num_labels": 10**12},
    {"num_frames": 10**12},
    {"num_frames": 10**12, "num_sampled_frames": 10**11, "tubelet_size": 1},
    {"image_size": 10**9},
    {"image_size": 2**18, "patch_size": 1},
    {"spectrogram_length": 10**12},
    {"num_bottleneck_tokens": 10**12},
    {"intermediate_size": 10**12},
    {"class_splits": {"verb": 10**12, "noun": 1}},
]
# Sizes that are allowed alone but not together. Their config can be made, and takes no memory.
ABSURD_TOGETHER = [
    {"hidden_size": 2**18, "num_attention_heads": 1, "intermediate_size": 2**18},
    {"representation_size": 2**20, "num_labels": 2**16},
    {"position_embeddings": "sinusoidal", "spectrogram_length": 2**18, "hidden_size": 2**20, "num_attention_heads": 1},
]
# For every architecture; one that does not check them yet is to fail here, not to take the machine's memory.
COMMON = [{"num_hidden_layers": 10**9}, {"num_labels": 2**20 + 1}]


@pytest.mark.parametrize("fields", ABSURD, ids=lambda fields: "-".join(fields))
def test_absurd_sizes_of_mbt_fail_before_memory_is_taken(fields, tmp_path):
    with pytest.raises(Exception, match=r"exceeds? the supported maximum") as caught:
        MBTConfig(**fields)
    assert "The config file may be corrupt." in str(caught.value)
    saved = {**MBTConfig().to_dict(), **fields}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(Exception, match=r"exceeds? the supported maximum"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("config", [row[0] for row in ARCHITECTURES], ids=lambda config: config.model_type)
@pytest.mark.parametrize("fields", COMMON, ids=lambda fields: "-".join(fields))
def test_absurd_sizes_of_every_architecture(config, fields):
    of_backbone = config is hf_avfusion.LavishTwoStreamConfig and "num_hidden_layers" in fields
    fields = {"backbone_config": {"model_type": "vit", **fields}} if of_backbone else fields
    with pytest.raises(Exception, match="The config file may be corrupt"):
        config(**fields)


@pytest.mark.parametrize("fields", ABSURD_TOGETHER, ids=lambda fields: "-".join(fields))
@pytest.mark.parametrize("way", ["class", "from_config", "from_pretrained"])
def test_absurd_numbers_of_parameters_fail_before_memory_is_taken(fields, way, tmp_path):
    saved = {**MBTConfig().to_dict(), **fields}
    if "num_labels" in fields:
        del saved["id2label"], saved["label2id"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    save_file({"classifier.bias": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = AutoConfig.from_pretrained(tmp_path)
    build = {
        "class": lambda: hf_avfusion.MBTForAudioVisualClassification(config),
        "from_config": lambda: AutoModelForVideoClassification.from_config(config),
        "from_pretrained": lambda: AutoModelForVideoClassification.from_pretrained(tmp_path),
    }[way]
    with (
        PeakMemory("cpu", PeakMemory.now("cpu")) as peak,
        pytest.raises(ValueError, match=r"in MBTConfig together give .* exceeds the supported maximum"),
    ):
        build()
    assert peak.mib is None or peak.mib < 1024


@pytest.mark.parametrize("model", [hf_avfusion.MBTModel, hf_avfusion.AVMAEModel])
def test_counting_parameters_changes_no_result(model):
    """The weights are the first random numbers after the seed, as without the count."""
    config = model.config_class(**SIZES, **INPUTS)
    torch.manual_seed(0)
    counted, after = model(config).state_dict(), torch.rand(3)
    torch.manual_seed(0)
    plain, after_plain = type.__call__(model, config).state_dict(), torch.rand(3)  # without the metaclass, which counts
    assert_same_bits(counted, plain)
    assert torch.equal(after, after_plain)


def test_published_sizes_are_far_inside():
    with torch.device("meta"):
        count = hf_avfusion.MBTForAudioVisualClassification(MBTConfig.large(num_labels=527)).num_parameters()
    assert count < 2**36 / 50


@pytest.mark.parametrize(
    "build",
    [
        lambda: AVFusionFeatureExtractor.from_preset("mbt", n_fft=2**40),
        lambda: AVFusionFeatureExtractor.from_preset("mbt", num_mel_bins=2**20, n_fft=2**20),
        lambda: AVFusionFeatureExtractor.from_preset("mbt", spectrogram_length=10**12),
        lambda: MBTProcessor(num_frames=10**12),
        lambda: MBTProcessor(audio_seconds=1e12),
        lambda: MBTProcessor(AVFusionVideoProcessor(crop_size={"height": 10**9, "width": 10**9})),
        lambda: MBTProcessor(AVFusionVideoProcessor(crop_size={"height": 2**16, "width": 2**16}), num_frames=2**10),
        lambda: MBTProcessor(AVFusionVideoProcessor(size={"shortest_edge": 2**19})),
    ],
)
def test_absurd_sizes_of_inputs(build):
    with pytest.raises(ValueError, match="exceeds the supported maximum"):
        build()


def test_a_saved_processor_with_absurd_sizes_is_not_loaded(tmp_path):
    processor().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    saved["window"]["num_frames"] = 10**12
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="`num_frames`=1000000000000 exceeds"):
        AutoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../../outside.mp4", "/etc/outside.mp4", "a/../../outside.mp4", "..\\outside.mp4"])
def test_names_in_archives_that_lead_out_are_refused(name, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for each in ("inside.mp4", name):
            member = tarfile.TarInfo(each)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match=r"shard\.tar.*leads out of the archive"):
        list(read_samples(tmp_path / "shard.tar"))
