"""The checkers of recorded cases are themselves checked: what is off, unknown or unmatched fails."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkers import avmae, mbt
from safetensors.numpy import load_file, save_file

GOLDENS = Path(__file__).parent / "goldens"


def changed(
    folder: Path, case: str, tensor: str | None = None, by: float = 1e-3, architecture: str = "mbt", **fields
) -> tuple[Path, dict, str]:
    """A copy of a case in which one value of `tensor` is off by that much of its largest, or fields of the record differ."""
    goldens = GOLDENS / architecture
    record = {**json.loads((goldens / f"{case}.json").read_text(encoding="utf-8")), **fields}
    for path in goldens.glob(f"{case}.*"):
        shutil.copyfile(path, folder / path.name)
    if tensor is not None:
        tensors = load_file(folder / f"{case}.safetensors")
        value = tensors.get(tensor, np.ones(1, np.float32)).copy()
        value.flat[0] += by * np.abs(value).max()
        save_file({**tensors, tensor: value}, folder / f"{case}.safetensors")
    return folder, record, case


@pytest.mark.parametrize(
    ("case", "tensor"),
    [
        ("bottleneck_mid_token", "output/logits"),
        ("bottleneck_mid_token", "output/layer_1/bottleneck_from/rgb"),
        ("bottleneck_mid_token", "output/train_logits/spectrogram"),
        ("bottleneck_mid_token", "output/loss_linear"),
        ("bottleneck_mid_token", "output/never_heard_of"),
        ("checkpoint_token", "output/pre_logits/rgb"),
        ("checkpoint_token", "output/never_heard_of"),
        ("vit_init_token", "target_after/bottleneck"),
        ("vit_init_token", "target_after/clsspectrogram"),
        ("vit_init_gap_patched", "target_after/bottleneck"),
        ("vit_init_gap_patched", "target_after/Transformer/posembed_input/pos_embedding"),
        ("logmel_reconstruction", "output/normalised"),
        ("logmel_reconstruction", "output/never_heard_of"),
    ],
)
def test_one_value_off_fails(tmp_path, case, tensor):
    mbt.check(*changed(tmp_path, case))
    with pytest.raises(AssertionError):
        mbt.check(*changed(tmp_path, case, tensor))


def test_every_recorded_gradient_counts(tmp_path):
    case = "bottleneck_mid_token"
    gradients = [name for name in load_file(GOLDENS / "mbt" / f"{case}.safetensors") if name.startswith("grad/")]
    assert gradients
    for name in gradients:
        if name.endswith("key/bias"):  # rounding around zero: see the checker
            continue
        with pytest.raises(AssertionError, match="grad "):
            mbt.check(*changed(tmp_path, case, name, by=3e-3))
    with pytest.raises(AssertionError, match="linear_global_grad_norm"):
        mbt.check(*changed(tmp_path, case, linear_global_grad_norm=150.0))


def test_unknown_kinds_fail(tmp_path):
    with pytest.raises(AssertionError, match="no checker for kind 'telepathy'"):
        mbt.check(*changed(tmp_path, "late_fusion_token", kind="telepathy"))
    (tmp_path / "bare.json").write_text("{}", encoding="utf-8")
    with pytest.raises(AssertionError, match="no checker for kind 'unknown'"):
        mbt.check(tmp_path, {}, "bare")


@pytest.mark.parametrize(
    ("case", "tensor"),
    [
        ("pre_midfusion_s2_shareddec", "output/reconstruction/rgb"),
        ("pre_midfusion_s2_shareddec", "output/encode_all/spectrogram"),
        ("pre_midfusion_s2_shareddec", "output/intermediate/encoder_output_rgb"),
        ("pre_early_inpainting_modtok", "mask/rgb/loss_mask"),
        ("pre_early_inpainting_modtok", "mask/rgb/never_heard_of"),
        ("pre_audio_only", "output/target/spectrogram"),
        ("pre_audio_only", "output/loss"),
        ("pre_audio_only", "output/never_heard_of"),
        ("ft_mbt_video_only_from_midfusion", "pretrained/Transformer_concat/encoder_norm/scale"),
        ("ft_mbt_video_only_from_midfusion", "pretrained/Transformer_rgb/encoderblock_1/MlpBlock_0/Dense_0/kernel"),
        ("ft_mbt_from_separate_modtok", "output/loss_train_mixup"),
        ("ft_mbt_from_separate_modtok", "output/mixup_label/spectrogram"),
        ("ft_mbt_from_separate_modtok", "output/tokens/rgb"),
        ("ft_vivit_audio_token", "output/logits_eval"),
        ("ft_vivit_video_gap", "output/never_heard_of"),
    ],
)
def test_one_value_off_fails_for_avmae(tmp_path, case, tensor):
    avmae.check(*changed(tmp_path, case, architecture="avmae"))
    with pytest.raises(AssertionError):
        avmae.check(*changed(tmp_path, case, tensor, architecture="avmae"))


def test_avmae_s_gradients_updates_and_schedule_count(tmp_path):
    case, block = "ft_mbt_from_separate_modtok", "Transformer/encoderblock_1_spec/MlpBlock_0/Dense_0"
    for tensor in (f"grad/{block}/kernel", f"updated/{block}/kernel", "output/grad_norm/1"):
        with pytest.raises(AssertionError, match=r"grad|updated"):
            avmae.check(*changed(tmp_path, case, tensor, by=3e-3, architecture="avmae"))
    for fields, message in (
        ({"lr_at_step": [0.0, 0.5]}, "learning rate of step 1"),
        ({"layer_id": {"bottleneck": 0}}, "layer id of bottleneck"),
        ({"kind": "telepathy"}, "no checker for kind 'telepathy'"),
    ):
        with pytest.raises(AssertionError, match=message):
            avmae.check(*changed(tmp_path, case, architecture="avmae", **fields))
