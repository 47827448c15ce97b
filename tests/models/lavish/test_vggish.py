"""VGGish: recorded cases, a second formulation of network and post-processing, names, sizes, strict loading, errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkers.lavish_parts import vggish as checker
from safetensors.numpy import load_file, save_file
from torch.nn.functional import conv2d, max_pool2d

from hf_avfusion.models.shared.vggish import VGGish, VGGishPostprocessing

TESTS = Path(__file__).resolve().parents[2]
OWN = TESTS / "goldens" / "lavish"
SHARED = TESTS.parent.parent / "shared" / "goldens" / "lavish"
CHANNELS, HIDDEN, SIZE = (3, 4, 5, 5, 6, 7), 11, 8


def recorded_cases() -> list:
    cases = {}
    for folder in (OWN, SHARED):
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("kind") in checker.KINDS:
                marks = [pytest.mark.slow] if record.get("layout") == "full" else []  # 72 M weights are generated
                cases.setdefault(path.stem, pytest.param(folder, record, path.stem, id=path.stem, marks=marks))
    found = list(cases.values())
    if not SHARED.is_dir():
        skip = pytest.mark.skip(
            reason="no folder ../shared beside the repository; two recorded cases of VGGish are in it"
        )
        found.append(pytest.param(None, None, None, id="shared", marks=skip))
    return found


def tiny(seed: int = 0, **kwargs) -> VGGish:
    """Weights large enough that no layer's output is nearly constant, and a PCA that is no identity."""
    model = VGGish(CHANNELS, HIDDEN, SIZE, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        fan_in = value[0].numel()
        value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return model.eval()


def some_examples(count: int = 3, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(count, 96, 64, generator=torch.Generator().manual_seed(seed)) - 2


def by_hand(state: dict[str, torch.Tensor], examples: torch.Tensor) -> torch.Tensor:
    """The network in float64 from its published names, one position of the last map after the other."""
    state = {name: value.double() for name, value in state.items()}
    maps = examples.double().unsqueeze(1)
    for place, pools in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        maps = conv2d(maps, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1).clamp(min=0)
        maps = max_pool2d(maps, 2) if pools else maps
    count, channels, rows, bins = maps.shape
    assert (rows, bins) == (6, 4)
    kernel = state["embeddings.0.weight"].reshape(-1, rows, bins, channels)
    hidden = state["embeddings.0.bias"].expand(count, -1).clone()
    for row in range(rows):
        for column in range(bins):
            hidden += maps[:, :, row, column] @ kernel[:, row, column].T
    for place in (2, 4):
        hidden = hidden.clamp(min=0) @ state[f"embeddings.{place}.weight"].T + state[f"embeddings.{place}.bias"]
    return hidden.clamp(min=0)


@pytest.mark.parametrize(("folder", "record", "case"), recorded_cases())
def test_recorded_case(folder, record, case):
    checker.check(folder, record, case)


class TestChecker:
    """What is off, unknown or unmatched fails."""

    @staticmethod
    def changed(folder: Path, tensor: str | None = None, by: float = 1e-3, **fields) -> tuple[Path, dict, str]:
        case = "vggish_small"
        shutil.copyfile(OWN / f"{case}.safetensors", folder / f"{case}.safetensors")
        if tensor is not None:
            tensors = load_file(folder / f"{case}.safetensors")
            value = tensors.get(tensor, np.ones(1, np.float32)).copy()
            value.flat[np.abs(value).argmax()] -= max(by * np.abs(value).max(), value.dtype == np.uint8)
            save_file({**tensors, tensor: value}, folder / f"{case}.safetensors")
        return folder, {**json.loads((OWN / f"{case}.json").read_text(encoding="utf-8")), **fields}, case

    @pytest.mark.parametrize(
        "tensor",
        [
            "output/embedding",
            "output/features_mean",
            "output/pca",
            "output/postprocessed",
            "output/never_heard_of",
            "input/never_heard_of",
            "grad/never_heard_of",
        ],
    )
    def test_one_value_off_fails(self, tmp_path, tensor):
        checker.check(*self.changed(tmp_path))
        with pytest.raises(AssertionError):
            checker.check(*self.changed(tmp_path, tensor))

    @pytest.mark.parametrize(
        "fields", [{"kind": "telepathy"}, {"hidden": 23}, {"channels": [4, 6, 8, 8, 10, 9]}, {"examples": 2}]
    )
    def test_other_facts_fail(self, tmp_path, fields):
        with pytest.raises(AssertionError):
            checker.check(*self.changed(tmp_path, **fields))

    def test_generated_weights_follow_the_rule(self):
        sizes = {"channels": list(CHANNELS), "hidden": HIDDEN, "embedding": SIZE}
        rule = "gain 24 (12 would be unit variance); bias = u * 0.2; computed in float64"
        state = checker.generated_weights({**sizes, "weight_rule": rule, "weight_seed": 5})
        number, index = 3, 2  # features.3.bias
        x = (index + (5 + number) * 1000003) % 2**32
        x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
        x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
        assert state["features.3.bias"][index] == np.float32(((x ^ x >> 16) / 2**32 - 0.5) * 0.2)
        assert np.abs(state["features.6.weight"]).max() <= 0.5 * (24 / 36) ** 0.5


class TestNetwork:
    def test_equals_the_explicit_formula(self):
        model, examples = tiny(), some_examples()
        with torch.no_grad():
            found, expected = model(examples), by_hand(model.state_dict(), examples)
        assert found.shape == (3, SIZE)
        assert (found == 0).any()  # the last ReLU
        assert (found > 0).any()
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())

    def test_published_names_and_sizes(self):
        with torch.device("meta"):
            model = VGGish()
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        weights = {
            "features.0": (64, 1, 3, 3), "features.3": (128, 64, 3, 3), "features.6": (256, 128, 3, 3),
            "features.8": (256, 256, 3, 3), "features.11": (512, 256, 3, 3), "features.13": (512, 512, 3, 3),
            "embeddings.0": (4096, 12288), "embeddings.2": (4096, 4096), "embeddings.4": (128, 4096),
        }  # fmt: skip
        expected = {f"{name}.weight": shape for name, shape in weights.items()}
        expected |= {f"{name}.bias": shape[:1] for name, shape in weights.items()}
        assert shapes == expected
        assert sum(parameter.numel() for parameter in model.parameters()) == 72_141_184
        with torch.device("meta"):
            whole = VGGish(postprocess=True)
        assert whole.state_dict().keys() - shapes.keys() == {"pproc.pca_eigen_vectors", "pproc.pca_means"}
        assert len(list(whole.parameters())) == 18  # the PCA is no parameter

    def test_all_weights_are_used_through_their_modules(self):
        model, called = tiny(), set()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda module, args, output, name=name: called.add(name))
        model(some_examples()).sum().backward()
        assert called == {name for name, _ in model.named_modules()}
        assert all(parameter.grad.any() for parameter in model.parameters())

    def test_rows_do_not_depend_on_each_other(self):
        model, examples = tiny(postprocess=True), some_examples(4)
        together = model(examples)
        alone = torch.cat([model(example[None]) for example in examples])
        assert torch.equal(together, alone)
        assert model(examples[:0]).shape == (0, SIZE)

    def test_bfloat16_and_export_with_any_number_of_examples(self):
        model = tiny()
        exact = model(some_examples())
        program = torch.export.export(
            model, (some_examples(2),), dynamic_shapes=({0: torch.export.Dim("examples", min=1, max=64)},)
        )
        torch.testing.assert_close(program.module()(some_examples()), exact)
        rounded = model.bfloat16()(some_examples().bfloat16())
        assert rounded.dtype == torch.bfloat16
        assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()

    @pytest.mark.parametrize("shape", [(96, 64), (2, 1, 96, 64), (2, 64, 96), (2, 5, 96, 64)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"VGGish takes \[N, 96, 64\].*flatten\(0, 1\)"):
            tiny()(torch.zeros(shape))

    def test_other_numbers_of_convolutions_are_refused(self):
        with pytest.raises(ValueError, match=r"channels=\(64, 128\) must be the widths of six convolutions"):
            VGGish((64, 128))
        with pytest.raises(ValueError, match="hidden_size=0 and embedding_size=8 must be at least 1"):
            VGGish(CHANNELS, 0, SIZE)


class TestPostprocessing:
    def test_equals_the_explicit_formula(self):
        module = tiny(postprocess=True).pproc
        embeddings = 4 * torch.rand(50, SIZE, generator=torch.Generator().manual_seed(3))  # large enough to be clipped
        vectors, means = (module.state_dict()[name].double().numpy() for name in ("pca_eigen_vectors", "pca_means"))
        whitened = np.clip((vectors @ (embeddings.double().numpy().T - means)).T, -2, 2)
        np.testing.assert_allclose(module.whiten(embeddings).numpy(), whitened, rtol=0, atol=1e-5)
        found = module(embeddings)
        assert found.dtype == torch.float32
        assert found.min() == 0
        assert found.max() == 255
        assert np.array_equal(found.numpy(), np.round((whitened + 2) * 255 / 4))

    def test_autocast_does_not_round(self):
        module, embeddings = tiny(postprocess=True).pproc, torch.rand(50, SIZE)
        expected = module(embeddings)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(module(embeddings), expected)

    def test_is_off_unless_asked_for_and_fresh_buffers_change_no_direction(self):
        assert VGGish(CHANNELS, HIDDEN, SIZE).pproc is None
        embeddings = torch.rand(4, SIZE)
        assert torch.equal(VGGishPostprocessing(SIZE).whiten(embeddings), embeddings)
        assert torch.equal(VGGishPostprocessing(SIZE)(embeddings), ((embeddings + 2) * 63.75).round())


class TestLoading:
    def test_sizes_come_from_the_state_dict(self):
        model = tiny()
        again = VGGish.from_published(model.state_dict()).eval()
        assert torch.equal(again(some_examples()), model(some_examples()))
        assert all(parameter.requires_grad for parameter in again.parameters())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            again.embeddings[0].weight.zero_()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.load_state_dict(VGGish.from_published(before).state_dict(), strict=True)

    @pytest.mark.parametrize("column", [True, False])
    def test_pca_is_a_file_of_its_own(self, column):
        whole = tiny(postprocess=True)
        network = {name: value for name, value in whole.state_dict().items() if not name.startswith("pproc.")}
        pca = {name: value.double().numpy() for name, value in whole.pproc.state_dict().items()}
        pca["pca_means"] = pca["pca_means"] if column else pca["pca_means"][:, 0]
        expected = whole(some_examples())
        assert torch.equal(VGGish.from_published(network, pca)(some_examples()), expected)
        assert torch.equal(VGGish.from_published(whole.state_dict())(some_examples()), expected)
        with pytest.raises(ValueError, match="give the PCA parameters once"):
            VGGish.from_published(whole.state_dict(), pca)

    def test_names_are_strict(self):
        state = tiny().state_dict()
        lacking = {name: value for name, value in state.items() if name != "features.11.bias"}
        with pytest.raises(ValueError, match=r"lacks features\.11\.bias: VGGish takes features\.0\.weight, "):
            VGGish.from_published(lacking)
        with pytest.raises(ValueError, match=r"the state dict holds classifier\.weight: .*no other names"):
            VGGish.from_published({**state, "classifier.weight": torch.zeros(1)})
        with pytest.raises(ValueError, match=r"lacks .* and holds module\..*Remove prefixes such as `module\.`"):
            VGGish.from_published({f"module.{name}": value for name, value in state.items()})
        with pytest.raises(ValueError, match="lacks pca_means: VGGish's post-processing takes"):
            VGGish.from_published(state, {"pca_eigen_vectors": torch.eye(SIZE)})

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            (
                "features.6.weight",
                (5, 4, 1, 1),
                r"features\.6\.weight has shape \(5, 4, 1, 1\), but .* must have \(5, 4, 3, 3\)",
            ),
            (
                "embeddings.0.weight",
                (HIDDEN, 7),
                r"embeddings\.0\.weight has shape \(11, 7\), but .* must have \(11, 168\)",
            ),
            ("embeddings.2.bias", (12,), r"embeddings\.2\.bias has shape \(12,\), but .* must have \(11,\): give"),
            ("features.0.bias", (), r"features\.0\.weight has shape \(3, 1, 3, 3\), but .* so for 2 more tensors"),
        ],
    )
    def test_shapes_are_strict(self, name, shape, message):
        with pytest.raises(ValueError, match=message):
            VGGish.from_published({**tiny().state_dict(), name: torch.zeros(shape)})

    def test_shapes_of_the_pca_are_strict(self):
        state = tiny().state_dict()
        with pytest.raises(
            ValueError, match=r"pca_eigen_vectors has shape \(8, 9\) and pca_means \(8,\): give \[E, E\]"
        ):
            VGGish.from_published(state, {"pca_eigen_vectors": torch.zeros(8, 9), "pca_means": torch.zeros(8)})
        with pytest.raises(ValueError, match="the PCA parameters are for 4 features, but this VGGish has 8"):
            VGGish.from_published(state, {"pca_eigen_vectors": torch.eye(4), "pca_means": torch.zeros(4)})
