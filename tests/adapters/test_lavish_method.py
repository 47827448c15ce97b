"""LAVISH as a method of peft: what peft's own methods can do, over every backbone."""

import subprocess
import sys

import pytest
import torch
from equality import assert_rounding, assert_same_bits
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from tiny_lavish import BACKBONES, perturb, tiny_inputs, tiny_model

from hf_avfusion.adapters import LavishConfig, LavishLayer, build_in, take_out
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification

HEAD = ["pre_classifier", "classifier"]
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def config(**options) -> LavishConfig:
    return LavishConfig(**{"reduction": 4, "modules_to_save": HEAD, **options})


def adapted(backbone: str = "vit", trained: bool = True, **options) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """A model with adapters, whose parameters and statistics are not those of new ones, and inputs."""
    model = get_peft_model(tiny_model(backbone), config(**options)).eval()
    if trained:
        perturb(model, ("lavish_audio", "lavish_video", "modules_to_save"))
    return model, tiny_inputs(model)


def train_step(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    shape = (2,) if model.config.num_segments is None else (2, 2)
    model.train()
    loss = model(**inputs, labels=torch.ones(shape, dtype=torch.long)).loss
    loss.backward()
    return loss


# --------------------------------------------------------------------------------------------------------- get_peft_model


@every_backbone
@torch.no_grad()
def test_new_adapters_leave_the_base_as_it_is(backbone):
    base = tiny_model(backbone)
    inputs = tiny_inputs(base)
    expected = base(**inputs).logits
    model = get_peft_model(base, config()).eval()
    assert_same_bits(model(**inputs).logits, expected)
    perturb(model, ("lavish_audio", "lavish_video"))
    assert not torch.allclose(model(**inputs).logits, expected, atol=1e-4)
    with model.disable_adapter():
        assert_same_bits(model(**inputs).logits, expected)
    assert_same_bits(model.unload()(**inputs).logits, expected)


@every_backbone
def test_only_adapters_and_saved_modules_train(backbone, capsys):
    model, inputs = adapted(backbone)
    model.print_trainable_parameters()
    trainable = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert f"trainable params: {sum(each.numel() for each in trainable.values()):,}" in capsys.readouterr().out
    assert all(
        ".lavish_audio." in name or ".lavish_video." in name or ".modules_to_save." in name for name in trainable
    )
    train_step(model, inputs)
    assert not [name for name, each in model.named_parameters() if (each.grad is not None) != (name in trainable)]


def test_training_lowers_the_loss_and_moves_the_statistics():
    model, inputs = adapted(trained=False)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(train_step(model, inputs).item())
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    tracked = [each for name, each in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(int(each) == 12 for each in tracked)


# --------------------------------------------------------------------------------------------------------- save and load


@every_backbone
@torch.no_grad()
def test_an_adapter_is_saved_alone_and_loads_under_any_name(backbone, tmp_path):
    model, inputs = adapted(backbone)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(any(part in name for part in (".lavish_audio.", ".lavish_video.", "classifier.")) for name in saved)
    assert [name for name in saved if name.endswith("running_mean")]
    assert isinstance(PeftConfig.from_pretrained(tmp_path), LavishConfig)
    for options in ({}, {"adapter_name": "other"}, {"is_trainable": True}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(tiny_model(backbone), tmp_path, **options).eval()
        assert_rounding(loaded(**inputs).logits, expected)
        trainable = any(each.requires_grad for name, each in loaded.named_parameters() if "lavish_" in name)
        assert trainable is options.get("is_trainable", False)
        state = {name.replace(".other.", ".default."): value for name, value in loaded.state_dict().items()}
        assert_same_bits(state, model.state_dict())


@torch.no_grad()
def test_transformers_loads_and_adds_adapters_itself(tmp_path):
    base = tiny_model("vit")
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(LavishForAudioVisualClassification.from_pretrained(tmp_path / "base"), config()).eval()
    perturb(model, ("lavish_audio", "lavish_video", "modules_to_save"))
    model.save_pretrained(tmp_path / "adapter")
    inputs = tiny_inputs(base)
    expected = model(**inputs).logits
    by_folder = LavishForAudioVisualClassification.from_pretrained(tmp_path / "adapter").eval()
    assert_rounding(by_folder(**inputs).logits, expected)
    by_method = LavishForAudioVisualClassification.from_pretrained(tmp_path / "base").eval()
    by_method.load_adapter(str(tmp_path / "adapter"))
    assert_rounding(by_method(**inputs).logits, expected)
    added = LavishForAudioVisualClassification.from_pretrained(tmp_path / "base").eval()
    added.add_adapter(config(), adapter_name="mine")
    assert_same_bits(added(**inputs).logits, base(**inputs).logits)


def test_the_norms_of_the_backbone_can_train_too(tmp_path):
    norms = ["layernorm_before", "layernorm_after", "layernorm"]
    model, inputs = adapted(modules_to_save=[*HEAD, *norms])
    perturb(model, ("modules_to_save",))
    train_step(model, inputs)
    gradients = {name for name, each in model.named_parameters() if each.grad is not None}
    assert any("layernorm_before.modules_to_save.default.weight" in name for name in gradients)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("vit"), tmp_path).eval()
    with torch.no_grad():
        assert_rounding(loaded(**inputs).logits, model(**inputs).logits)


# -------------------------------------------------------------------------------------------------------- several adapters


@torch.no_grad()
def test_several_adapters_of_different_sizes(tmp_path):
    model, inputs = adapted()
    first = model(**inputs).logits
    model.add_adapter("second", config(num_tokens=3, reduction=2, groups=1, use_bn=False, ln_post=False))
    perturb(model, (".second.",))
    assert_same_bits(model(**inputs).logits, first)
    model.set_adapter("second")
    second = model(**inputs).logits
    assert not torch.allclose(second, first, atol=1e-3)
    model.set_adapter("default")
    assert_same_bits(model(**inputs).logits, first)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("vit"), tmp_path / "second", adapter_name="second").eval()
    assert_rounding(loaded(**inputs).logits, second)
    model.delete_adapter("second")
    assert not [name for name in model.state_dict() if ".second" in name]
    assert_same_bits(model(**inputs).logits, first)


@torch.no_grad()
def test_two_active_adapters_add_their_residuals():
    model, _ = adapted(modules_to_save=None)
    model.add_adapter("second", config(modules_to_save=None))
    perturb(model, (".second.",))
    layer = next(each for each in model.modules() if isinstance(each, LavishLayer))
    tokens = torch.randn(2, 16, 24), torch.randn(2, 17, 24)
    single = []
    for name in ("default", "second"):
        model.base_model.set_adapter(name)
        single.append(layer(*tokens))
    model.base_model.set_adapter(["default", "second"])
    for together, one, other in zip(layer(*tokens), *single):
        torch.testing.assert_close(together, one + other)


@torch.no_grad()
def test_an_adapter_for_each_sample():
    model, _ = adapted()
    model.add_adapter("second", config(num_tokens=4, reduction=2))
    perturb(model, (".second.",))
    inputs = tiny_inputs(model, batch=5)
    names = ["second", "default", "__base__", "default", "second"]
    mixed = model(**inputs, adapter_names=names).logits
    for row, name in enumerate(names):
        single = {key: value[row : row + 1] for key, value in inputs.items()}
        if name == "__base__":
            with model.disable_adapter():
                expected = model(**single).logits
        else:
            model.set_adapter(name)
            expected = model(**single).logits
        torch.testing.assert_close(mixed[row : row + 1], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="names 'third', but the adapters are default, second"):
        model(**inputs, adapter_names=["third"] * 5)
    with pytest.raises(ValueError, match="names 2 adapters for a batch of 5"):
        model(**inputs, adapter_names=["default"] * 2)
    with pytest.raises(ValueError, match="for evaluation"):
        model.train()(**inputs, adapter_names=names)


# ----------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["blocks.0.fusion_attn", "blocks.0.fusion_mlp", "blocks.1.fusion_attn", "blocks.1.fusion_mlp"]),
        ({"target_modules": r".*\.fusion_attn"}, ["blocks.0.fusion_attn", "blocks.1.fusion_attn"]),
        ({"target_modules": ["fusion_mlp"]}, ["blocks.0.fusion_mlp", "blocks.1.fusion_mlp"]),
        ({"exclude_modules": r".*blocks\.0\..*"}, ["blocks.1.fusion_attn", "blocks.1.fusion_mlp"]),
        (
            {"target_modules": ["fusion_attn"], "layers_to_transform": [1], "layers_pattern": "blocks"},
            ["blocks.1.fusion_attn"],
        ),
    ],
)
def test_targets(options, expected):
    model, _ = adapted(**options)
    found = [
        name.removeprefix("base_model.model.lavish.")
        for name, module in model.named_modules()
        if isinstance(module, LavishLayer)
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ({"target_modules": "all-linear"}, "default", "names linear layers"),
        ({"target_modules": ["q_proj"]}, "default", "matches .*q_proj, a Linear"),
        ({"target_modules": r".*\.blocks\.0\..*"}, "default", "matches .* belong into slots"),
        ({"reduction": 8}, "default", "`groups` .2. must divide"),
        ({}, "blocks", "'blocks' is the name of a module"),
        ({}, "a.b", "name of a module"),
    ],
)
@torch.no_grad()
def test_refusals_change_nothing(options, name, message):
    base = tiny_model("vit")
    before, inputs = dict(base.named_modules()), tiny_inputs(base)
    expected = base(**inputs).logits
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, config(**options), adapter_name=name)
    assert dict(base.named_modules()) == before
    assert_same_bits(base(**inputs).logits, expected)
    model = get_peft_model(base, config(), adapter_name="good")
    with pytest.raises(ValueError, match=message):
        model.add_adapter(name, config(**options))
    assert list(model.peft_config) == ["good"]


def test_refusals_of_options():
    for options, message in (
        ({"num_tokens": 0}, "`num_tokens` of the adapters must be at least 1"),
        ({"direction": "sideways"}, "`direction` of the adapters must be one of"),
        ({"layers_to_transform": [1]}, "needs `target_modules` as a list"),
    ):
        with pytest.raises(ValueError, match=message):
            LavishConfig(**options)
    with pytest.raises(ValueError, match="has no slots for LAVISH adapters"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), LavishConfig())
    with pytest.raises(ValueError, match=r"built-in adapters.*take_out"):
        get_peft_model(tiny_model("vit", adapter={"reduction": 4}), config())


@torch.no_grad()
def test_what_cannot_be_merged_stays_as_it_is():
    model, inputs = adapted()
    expected = model(**inputs).logits
    for refused in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match=r"hf_avfusion\.adapters\.build_in"):
            refused()
    with pytest.raises(NotImplementedError, match="not linear in their weights"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("lora", LoraConfig(target_modules=["q_proj"]))
    assert_same_bits(model(**inputs).logits, expected)


# ------------------------------------------------------------------------------------------------------ build in, take out


@every_backbone
@torch.no_grad()
def test_build_in_and_take_out(backbone, tmp_path):
    model, inputs = adapted(backbone)
    expected = model(**inputs).logits
    built = build_in(model)
    assert type(built) is LavishForAudioVisualClassification
    assert not [name for name, module in built.named_modules() if "peft" in type(module).__module__]
    assert_same_bits(built(**inputs).logits, expected)
    built.save_pretrained(tmp_path)
    assert_same_bits(LavishForAudioVisualClassification.from_pretrained(tmp_path).state_dict(), built.state_dict())
    out = take_out(built, modules_to_save=HEAD).eval()
    assert_same_bits(out(**inputs).logits, expected)
    expected_state, state = model.state_dict(), out.state_dict()
    own = [name for name in expected_state if ".original_module." not in name]  # of the head, before it was trained
    assert state.keys() == expected_state.keys()
    assert_same_bits({name: state[name] for name in own}, {name: expected_state[name] for name in own})
    assert built.config.adapter is not None
    assert_same_bits(model(**inputs).logits, expected)


@torch.no_grad()
def test_build_in_some_slots_and_adapters_of_transformers():
    model, inputs = adapted(target_modules=["fusion_attn"], direction="audio_to_video")
    built = build_in(model)
    assert built.config.adapter["slots"] == ["blocks.0.fusion_attn", "blocks.1.fusion_attn"]
    assert_same_bits(built(**inputs).logits, model(**inputs).logits)
    plain = tiny_model("vit")
    plain.add_adapter(config())
    perturb(plain, ("lavish_",))
    assert_same_bits(build_in(plain.eval())(**inputs).logits, plain(**inputs).logits)
    with pytest.raises(ValueError, match="has no LAVISH adapters"):
        build_in(tiny_model("vit"))
    with pytest.raises(ValueError, match=r"no adapter 'other'\. Its adapters are default"):
        build_in(model, "other")
    with pytest.raises(ValueError, match="no built-in adapters"):
        take_out(tiny_model("vit"))


# --------------------------------------------------------------------------------------- dtypes, checkpointing, compiling


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_have_adapters_in_float32(dtype):
    reference, inputs = adapted()
    model = get_peft_model(tiny_model("vit").to(dtype), config())
    model.load_state_dict(reference.state_dict())
    own = [each for name, each in model.named_parameters() if "lavish_" in name and each.requires_grad]
    assert own
    assert all(each.dtype == torch.float32 for each in own)
    with torch.no_grad():
        expected = reference(**inputs).logits
        found = model.eval()(**inputs).logits
    # 2 layers of the base in half precision; measured 0.017 for bfloat16 and 0.0013 for float16
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    train_step(model, inputs)
    assert all(torch.isfinite(each.grad).all() for each in own)


@every_backbone
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_updates_batch_norm_once(backbone, reentrant):
    def run(checkpointing: bool) -> tuple[dict, dict]:
        model, inputs = adapted(backbone)
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.base_model.model.enable_input_require_grads()
        train_step(model, inputs)
        gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
        return gradients, dict(model.named_buffers())

    (found, found_buffers), (expected, buffers) = run(True), run(False)
    assert_same_bits(found_buffers, buffers)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.by_default("vit", of="backbone")
@every_backbone
@torch.no_grad()
def test_compiles_to_one_graph(backbone):
    model, inputs = adapted(backbone)
    expected = model(**inputs).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_exports_with_a_dynamic_batch():
    model, inputs = adapted()
    built = build_in(model)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(built, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    more = tiny_inputs(built, batch=5, seed=3)
    torch.testing.assert_close(program.module()(**more).logits, built(**more).logits, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ registration


@pytest.mark.parametrize("first", ["peft", "hf_avfusion"])
def test_the_method_is_known_in_either_order_of_imports(first):
    second = {"peft": "hf_avfusion", "hf_avfusion": "peft"}[first]
    code = f"import {first}, {second}\nfrom peft.utils import PeftType\nassert 'LAVISH' in list(PeftType)\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_enumeration_holds_a_real_member():
    assert PeftType("LAVISH") is PeftType.LAVISH
    assert PeftType.LAVISH in list(PeftType)
    assert PeftType.LAVISH.value == "LAVISH"
    assert len(set(PeftType)) == len(list(PeftType))


# ------------------------------------------------------------------------------------------------------ hostile folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapted()[0].save_pretrained(folder)
    return folder


def load_changed(saved, folder, change):
    weights = load_file(saved / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text((saved / "adapter_config.json").read_text())
    return PeftModel.from_pretrained(tiny_model(), folder)


def first(weights, part):
    return next(name for name in weights if part in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(first(w, "lavish_video")), "of the adapter default lack .*lavish_video"),
        (lambda w: w.update({"base_model.model.nope": torch.zeros(3)}), "not the adapter's: model.nope"),
        (
            lambda w: w.update({"base_model.model.lavish.blocks.0.layer.layernorm_before.weight": torch.zeros(24)}),
            "not the adapter's: .*layernorm_before",
        ),
        (lambda w: w[first(w, "lavish_audio.down")].fill_(torch.nan), "not finite in .*lavish_audio"),
    ],
    ids=["missing", "unknown", "of the base", "NaN"],
)
def test_hostile_weights_of_an_adapter_are_refused(saved, tmp_path, change, message):
    load_changed(saved, tmp_path, lambda weights: None)
    with pytest.raises(ValueError, match=message):
        load_changed(saved, tmp_path, change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules_to_save": ["classifer"]}, "modules_to_save` names 'classifer', but"),
        ({"modules_to_save": "classifier"}, "modules_to_save` must be a list of names"),
        ({"target_modules": 5}, "target_modules` must be a list of names"),
        ({"exclude_modules": [5]}, "exclude_modules` must be a list of names"),
        ({"layers_pattern": "blocks"}, "layers_pattern` 'blocks' has no effect"),
        ({"num_tokens": 2**20, "reduction": 1, "groups": 1}, "num_tokens` and `reduction` together give .* bytes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_without_effect_or_bound_are_refused(monkeypatch, options, message):
    monkeypatch.setenv("HF_AVFUSION_MAX_BYTES", str(2**28))
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny_model(), config(**options))
