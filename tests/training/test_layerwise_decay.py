"""Layer-wise learning rate decay against recorded layer ids, rates and updates of the original AV-MAE."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_avfusion import MBTConfig, MBTForAudioVisualClassification
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.layerwise_decay import kernel_names, layer_ids, layer_scale, layerwise_groups
from hf_avfusion.training.optimization import momentum_sgd, warmup_cosine_factor, warmup_cosine_schedule
from hf_avfusion.training.trainer import AVTrainer

CASE = "ft_mbt_from_separate_modtok"
TINY = {
    "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 16,
    "num_frames": 2, "spectrogram_length": 16, "num_mel_bins": 16, "fusion_layer": 1, "num_labels": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "goldens" / "avmae"
    return json.loads((folder / f"{CASE}.json").read_text()), load_file(folder / f"{CASE}.safetensors")


def our_name(path: str) -> str:
    """Our name for a parameter of the original; its recorded tensor is unchanged."""
    stream = "audio" if re.search(r"_spec(trogram)?(/|$)", path) else "video"
    if match := re.match(r"Transformer/encoderblock_(\d+)(?:_spec)?/(.+)", path):
        return f"mbt.layers.{match[1]}.{stream}.{match[2].replace('/', '.')}"
    if "modality_token" in path:
        return f"mbt.{stream}_embeddings.modality_token"
    if path.startswith("embedding"):
        return f"mbt.{stream}_embeddings.patch_embeddings.projection.{path.split('/')[1]}"
    return {"bottleneck": "mbt.bottleneck"}.get(path, path.replace("/", "."))


def test_layer_ids_and_scales_match_the_record(golden):
    record, _ = golden
    names = {path: our_name(path) for path in record["layer_id"]}
    assert len(set(names.values())) == len(names) == 107
    ids = layer_ids(names.values())
    assert {path: ids[name] for path, name in names.items()} == record["layer_id"]
    scales = {str(number): layer_scale(number, max(ids.values()), 0.75) for number in set(ids.values())}
    assert scales == pytest.approx(record["lr_scale"])


def test_learning_rates_match_the_record(golden):
    record, _ = golden
    config = record["config"]["lr_configs"]
    rates = [
        config["base_learning_rate"] * warmup_cosine_factor(step, config["warmup_steps"], config["steps_per_cycle"])
        for step in range(len(record["lr_at_step"]))
    ]
    assert rates == pytest.approx(record["lr_at_step"], abs=1e-7)


def test_three_recorded_updates(golden):
    """The record holds the first two gradients (equal, since the first update has rate 0) and the norm of the third.

    The test derives the third gradient from the recorded parameters after the third update and ours after two. Its norm over
    all parameters must match the recorded norm, which was not clipped.
    """
    record, tensors = golden
    layers = record["layer_id"]
    names = {path: our_name(path) for path in layers}
    parameters = {path: torch.nn.Parameter(tensors[f"param/{path}"].double()) for path in layers}
    our_parameters = {names[path]: parameter for path, parameter in parameters.items()}
    groups = layerwise_groups(
        our_parameters, layer_ids(our_parameters), 0.8, record["config"]["optimizer_configs"]["layerwise_decay"]
    )
    optimizer = momentum_sgd(groups, 0.8, record["config"]["optimizer_configs"]["momentum"])
    schedule = warmup_cosine_schedule(optimizer, 2, 10)
    for step in range(2):
        for path, parameter in parameters.items():
            parameter.grad = tensors[f"grad/{path}"].double()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), record["config"]["max_grad_norm"])
        assert norm.item() == pytest.approx(tensors[f"output/grad_norm/{step}"].item(), rel=1e-5)
        optimizer.step()
        schedule.step()

    def third_gradient_norm(scale_of):
        total = 0.0
        for path, parameter in parameters.items():
            momentum = optimizer.state[parameter]["momentum_buffer"]
            rate = record["lr_at_step"][2] * scale_of(path)
            gradient = (parameter.detach() - tensors[f"updated/{path}"].double()) / rate - 0.9 * momentum
            total += gradient.square().sum().item()
        return math.sqrt(total)

    recorded = tensors["output/grad_norm/2"].item()
    assert recorded < 1  # not clipped
    norm = third_gradient_norm(lambda path: record["lr_scale"][str(layers[path])])
    assert norm == pytest.approx(recorded, rel=2e-4)
    # The check is sensitive: without layer-wise decay in the third update, the norm differs.
    assert third_gradient_norm(lambda path: 1.0) != pytest.approx(recorded, rel=0.05)


def test_layer_ids_of_a_model():
    model = MBTForAudioVisualClassification(MBTConfig(**TINY))
    ids = layer_ids(name for name, _ in model.named_parameters())
    by_id = {}
    for name, layer_id in ids.items():
        by_id.setdefault(layer_id, []).append(name)
    assert sorted(by_id) == [0, 1, 2, 3, 4]
    assert all("_embeddings." in name for name in by_id[0])
    for layer in range(3):
        assert all(name.startswith(f"mbt.layers.{layer}.") for name in by_id[layer + 1])
        assert {name.split(".")[3] for name in by_id[layer + 1]} == {"video", "audio"}
    assert set(by_id[4]) == {
        "mbt.bottleneck", "mbt.layernorm.weight", "mbt.layernorm.bias", "classifier.weight", "classifier.bias",
    }  # fmt: skip


def test_decoder_layers_do_not_count_as_encoder_layers():
    ids = layer_ids(
        ["avmae.encoder.layers.1.video.mlp.fc1.weight", "decoder.transformer.layers.7.shared.mlp.fc1.weight"]
    )
    assert list(ids.values()) == [2, 3]


def test_groups_are_ordered_from_the_top_layer():
    names = ["video_embeddings.x", "layers.0.weight", "layers.0.bias", "head.weight"]
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in names}
    groups = layerwise_groups(
        parameters, layer_ids(names), 0.8, 0.5, decaying=["layers.0.weight", "head.weight"], weight_decay=0.1
    )
    described = [
        (group["lr"], group["weight_decay"], [n for n in names for p in group["params"] if p is parameters[n]])
        for group in groups
    ]
    assert described == [
        (0.8, 0.1, ["head.weight"]),
        (0.4, 0.1, ["layers.0.weight"]),
        (0.4, 0.0, ["layers.0.bias"]),
        (0.2, 0.0, ["video_embeddings.x"]),
    ]


def test_missing_layers_ids_and_wrong_decays_raise():
    with pytest.raises(ValueError, match=r"layer_decay needs parameters of numbered layers.*\['conv.weight'\]"):
        layer_ids(["conv.weight"])
    with pytest.raises(ValueError, match="no layer id: b"):
        layerwise_groups({"b": torch.zeros(1)}, {"a": 0}, 1.0, 0.5)
    with pytest.raises(ValueError, match="between 0 and 3"):
        layer_scale(4, 3, 0.5)
    with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\], got 0"):
        layer_scale(1, 3, 0.0)
    with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\], got 1.5"):
        AVTrainingArguments(output_dir="unused", layer_decay=1.5)


def test_kernels_are_weights_of_dense_layers_and_convolutions():
    model = MBTForAudioVisualClassification(MBTConfig(**TINY))
    kernels = kernel_names(model)
    parameters = dict(model.named_parameters())
    assert kernels <= set(parameters)
    others = set(parameters) - kernels
    assert all(
        re.search(r"bias$|layernorm\w*\.weight$|cls_token$|position_embeddings$|mbt\.bottleneck$", name)
        for name in others
    )
    assert {"mbt.audio_embeddings.patch_embeddings.projection.weight", "classifier.weight"} <= kernels


def test_optimizer_with_its_own_groups_raises(tmp_path, monkeypatch):
    args = AVTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", layer_decay=0.75)
    trainer = AVTrainer(MBTForAudioVisualClassification(MBTConfig(**TINY)), args)
    own = (torch.optim.SGD, {"params": list(trainer.model.parameters()), "lr": 0.1})
    monkeypatch.setattr(trainer, "get_optimizer_cls_and_kwargs", lambda args, model: own)
    with pytest.raises(ValueError, match="makes its own parameter groups, so that layer_decay would have no effect"):
        trainer.create_optimizer()


class Gradients(TrainerCallback):
    """Records gradients and parameters of every update, after clipping and before the optimiser step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})


@pytest.mark.parametrize("optimizer", ["momentum_sgd", "adam_decoupled"])
def test_trainer_makes_the_published_updates(optimizer, tmp_path):
    """Compares the weights after four updates with the published formulas in NumPy, applied to the Trainer's gradients."""
    torch.manual_seed(0)
    model = MBTForAudioVisualClassification(MBTConfig(**TINY))
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "pixel_values": torch.randn(2, 3, 16, 16, generator=generator),
            "input_features": torch.randn(16, 16, generator=generator),
            "has_video": True,
            "has_audio": True,
            "labels": torch.tensor(number % 3),
        }
        for number in range(8)
    ]
    published = {"momentum_sgd": {}, "adam_decoupled": {"adam_beta2": 0.95, "weight_decay": 0.05, "max_grad_norm": 0.0}}
    args = AVTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, learning_rate=0.05,
        optimizer=optimizer, layer_decay=0.75, schedule="warmup_cosine", warmup_epochs=1.5, num_train_epochs=4,
        per_device_train_batch_size=8, **published[optimizer],
    )  # fmt: skip
    start = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    gradients = Gradients()
    trainer = AVTrainer(model, args, train_dataset=rows, callbacks=[gradients])
    trainer.train()
    assert len(gradients.seen) == 4
    if optimizer == "momentum_sgd":
        norms = [math.sqrt(sum(g.square().sum().item() for g in seen.values())) for seen in gradients.seen]
        assert max(norms) <= 1.0 + 1e-5

    for name, parameter in model.named_parameters():
        # The formulas of AV-MAE's optimisers: learning rate by layer, warm-up times cosine, update, weight decay of kernels.
        layer = re.search(r"\.layers\.(\d)\.", name)
        layer_id = int(layer[1]) + 1 if layer else 0 if "_embeddings." in name else 4
        is_kernel = re.search(r"(_proj|fc\d|projection|classifier)\.weight$", name)
        value, first, second = start[name], 0.0, 0.0
        for step in range(4):
            gradient = gradients.seen[step][name].double().numpy()
            rate = 0.05 * 0.75 ** (4 - layer_id) * min(1, step / 1.5)
            rate *= 0.5 * (1 + math.cos(math.pi * max(0, step - 1.5) / (4 - int(1.5))))
            if optimizer == "momentum_sgd":
                first = 0.9 * first + gradient
                value = value - rate * first
            else:
                first = 0.9 * first + 0.1 * gradient
                second = 0.95 * second + 0.05 * gradient**2
                unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.95 ** (step + 1))
                value = value - rate * unbiased[0] / (unbiased[1] ** 0.5 + 1e-8)
                value = value * (1 - rate * 0.05) if is_kernel else value
        if name.endswith("k_proj.bias"):
            continue  # its gradient is only rounding error, which Adam normalises to a full step
        torch.testing.assert_close(
            parameter.detach().double(),
            torch.from_numpy(value),
            rtol=2e-5,
            atol=2e-6,
            msg=lambda text, n=name: f"{n}: {text}",
        )
    assert trainer.lr_scheduler.get_last_lr()[0] == max(trainer.lr_scheduler.get_last_lr())
