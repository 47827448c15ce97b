"""
Checks of LAVISH's recorded cases of kind `avqa`: the question-answering head from the recorded tokens of both streams.

Devices, comparisons and bars are those of `checkers.mbt`: `mbt.device`, `mbt.on_compare` and `mbt.require`.
"""

from pathlib import Path

import numpy as np
import torch
from checkers import mbt
from safetensors.numpy import load_file

from hf_avfusion.conversion.lavish_question_answering import (
    LAYERS,
    TENSORS,
    UNUSED,
    convert_head,
    head_rules,
    split_attention,
)
from hf_avfusion.models.lavish.question_answering_lavish import (
    LavishQuestionAnsweringHead,
    LavishQuestionAnsweringHeadOutput,
    question_answering_loss,
)

OUTPUTS = 5e-6  # of the largest reference magnitude
ROUNDING = 1e-6  # of the case's largest gradient: float32 noise where exact arithmetic gives zero
HEAD_LAYERS = {*LAYERS, *(name.rpartition(".")[0] for name in [*TENSORS, *UNUSED]), "attn_v", "attn_a"}
TOKENS = "output/final_norm_out"
BASE_OUTPUTS = ("block", "final_norm_in/", "final_norm_out/")  # states of the streams before the head


def check(folder: Path, record: dict, case: str) -> None:
    """Run one case of kind `avqa`."""
    assert record["kind"] == "avqa", f"lavish/{case}: the question-answering checker has no kind {record['kind']!r}"
    tensors = load_file(folder / f"{case}.safetensors")
    head = build_head(record, tensors)
    check_head(head, recorded_tokens(record, tensors), tensors, case)


def is_of_head(name: str) -> bool:
    """Whether an original tensor, named without `param/` or `output/grad/`, belongs to the head. Others are of the base."""
    return name.rpartition(".")[0] in HEAD_LAYERS


def build_head(record: dict, tensors: dict[str, np.ndarray]) -> LavishQuestionAnsweringHead:
    """The head with the recorded sizes and parameters; in the mode of the case."""
    params = {name: value for name, value in mbt.group(tensors, "param/").items() if is_of_head(name)}
    first, *match_widths, last = record["mlp_widths"]
    assert (first, last) == (2 * record["hidden"], 2), f"mlp_widths {record['mlp_widths']} do not fit the match head"
    assert record["mode"] == "eval", f"a case in mode {record['mode']!r} has dropout, which no record repeats"
    head = LavishQuestionAnsweringHead(
        record["swin_dim"],
        record["answers"],
        vocab_size=record["vocab"],
        hidden_width=record["hidden"],
        word_width=params["question_encoder.word2vec.weight"].shape[1],
        num_heads=record["attn_heads"],
        match_widths=tuple(match_widths),
        feedforward_width=len(params["linear11.weight"]),
    )
    head.load_state_dict(convert_head(params, head), strict=True)
    return head.to(mbt.device).eval()


def recorded_tokens(record: dict, tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The head's tokens, [B, S, N, D], from the recorded outputs of the final norms, which have seconds in the batch."""
    names = {"video_tokens": "video", "audio_tokens": "audio"}
    if f"{TOKENS}/negative_video_without_adapters" in tensors:
        names["negative_video_tokens"] = "negative_video_without_adapters"
    shape = (record["batch"], record["frames"])
    return {ours: floats(tensors[f"{TOKENS}/{name}"]).unflatten(0, shape) for ours, name in names.items()}


def floats(array: np.ndarray) -> torch.Tensor:
    return mbt.tensor(array.astype(np.float32))


def indices(array: np.ndarray) -> torch.Tensor:
    # The test of placement puts a dtype of floats in the place of the device.
    where = "cpu" if isinstance(mbt.device, torch.dtype) else mbt.device
    return torch.from_numpy(array).long().to(where)


def check_head(
    head: LavishQuestionAnsweringHead, tokens: dict[str, torch.Tensor], tensors: dict[str, np.ndarray], case: str
) -> None:
    """Compare all recorded outputs and gradients of the head, which is given the tokens, with those of `tensors`."""
    input_ids, labels = indices(tensors["input/question"]), indices(tensors["input/answer"])
    output = head(**tokens, input_ids=input_ids)
    losses = question_answering_loss(output, labels)
    found = {**outputs(output), "question_feature": head.question_encoder(input_ids)}
    found |= {"loss": losses.loss.reshape(1), "loss_qa": losses.answer.reshape(1)}
    if losses.match is not None:
        found["loss_match"] = losses.match.reshape(1)
    expected = {
        name: value
        for name, value in mbt.group(tensors, "output/").items()
        if not name.startswith((*BASE_OUTPUTS, "grad/"))
    }
    assert "answer_logits" in expected, f"lavish/{case}: records no answer_logits"
    for name, reference in expected.items():
        assert name in found, f"lavish/{case}: no counterpart of output/{name}"
        reference = reference.reshape(1) if reference.shape == () else reference
        mbt.close(name, found[name], reference, OUTPUTS)
    several = head(**tokens, input_ids=torch.stack((input_ids, input_ids.flip(1)), dim=1))
    mbt.close("answer_logits of two questions", several.logits[:, 0], tensors["output/answer_logits"], OUTPUTS)
    check_gradients(head, losses.loss, tensors)


def outputs(output: LavishQuestionAnsweringHeadOutput) -> dict[str, torch.Tensor]:
    """Outputs under the recorded names; the original folds seconds into the batch."""
    found = {"answer_logits": output.logits, "match_positive": output.match_logits.flatten(0, 1)}
    if output.negative_match_logits is not None:
        found["match_negative"] = output.negative_match_logits.flatten(0, 1)
    return found


def check_gradients(head: LavishQuestionAnsweringHead, loss: torch.Tensor, tensors: dict[str, np.ndarray]) -> None:
    """Compare the recorded gradients of the loss by the head's parameters; those of the base are not the head's."""
    gradients = {**mbt.group(tensors, "grad/"), **mbt.group(tensors, "output/grad/")}
    largest = max((float(np.abs(value).max()) for value in gradients.values()), default=0.0)
    gradients = split_attention({name: value for name, value in gradients.items() if is_of_head(name)})
    if not gradients:
        return
    head.zero_grad()
    loss.backward()
    rules, ours = head_rules(), dict(head.named_parameters())
    for source, reference in gradients.items():
        if source in UNUSED:
            assert not reference.any(), f"{source} was dropped but has a gradient"
            continue
        name = rules[source][0]
        found = ours[name].grad.cpu().float().numpy()
        assert found.shape == reference.shape, f"grad {name}: {found.shape} instead of {reference.shape}"
        error, magnitude = float(np.abs(found - reference).max()), float(np.abs(reference).max())
        # A key bias shifts all scores of a query alike, so its gradient is zero in exact arithmetic.
        is_rounding = name.endswith("k_proj.bias") or magnitude <= 1e-5 * largest
        mbt.on_compare(f"grad {name}", error, 0.0 if is_rounding else magnitude)
        allowed = ROUNDING * largest if is_rounding else mbt.GRADIENTS * magnitude
        mbt.require(error <= allowed, f"grad {name}: error {error:.2e}, largest {magnitude:.2e}, allowed {allowed:.2e}")
