"""LAVISH's question-answering head: recorded cases, a second formulation with PyTorch's own layers, missing modalities."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from checkers import mbt
from checkers.lavish_parts import question_answering
from safetensors.numpy import save_file
from tiny_lavish import tiny_questions
from torch import nn
from torch.nn import functional

from hf_avfusion.conversion.flax import ConversionError
from hf_avfusion.conversion.lavish_question_answering import (
    UNUSED,
    convert_head,
    head_rules,
    split_attention,
    without_module,
)
from hf_avfusion.models.lavish.modeling_lavish_heads import LavishForQuestionAnswering
from hf_avfusion.models.lavish.question_answering_lavish import (
    LavishQuestionAnsweringHead,
    init_question_answering_layer,
    question_answering_loss,
)

B, S, N, M, D, H, WORDS, ANSWERS, LENGTH = 3, 4, 5, 6, 6, 8, 11, 7, 5


class PublishedHead(nn.Module):
    """The head under the original's names, after its description, with nn.LSTM and nn.MultiheadAttention; seconds in the batch."""

    def __init__(self):
        super().__init__()
        self.question_encoder = nn.Module()
        self.question_encoder.word2vec = nn.Embedding(WORDS, H)
        self.question_encoder.lstm = nn.LSTM(H, H)
        self.question_encoder.fc = nn.Linear(2 * H, H)
        sizes = {"yb_fc_v": (D, H), "yb_fc_a": (D, H), "fc_a2": (H, H), "fc_gl": (2 * H, H), "fc_fusion": (2 * H, H)}
        sizes |= {"fc1": (2 * H, H), "fc2": (H, 6), "fc3": (6, 5), "fc4": (5, 2), "fc_ans": (H, ANSWERS)}
        sizes |= dict.fromkeys(("linear11", "linear12", "linear21", "linear22"), (H, H))
        sizes |= dict.fromkeys(("fc_a1", "fc_a1_pure", "fc_a2_pure", "fc_v", "fc_st", "fc", "fc_aq", "fc_vq"), (3, 3))
        for name, (width, output) in sizes.items():
            setattr(self, name, nn.Linear(width, output))
        for name in ("norm1", "norm2", "norm3"):
            setattr(self, name, nn.LayerNorm(H))
        self.attn_v, self.attn_a = nn.MultiheadAttention(H, 4), nn.MultiheadAttention(H, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.5)

    def encode(self, question):
        words = self.question_encoder.word2vec(question).tanh().transpose(0, 1)
        _, (hidden, cell) = self.question_encoder.lstm(words)
        return self.question_encoder.fc(torch.cat((hidden[0], cell[0]), dim=1).tanh())

    def ground(self, tokens, sound):
        tokens = self.yb_fc_v(tokens.flatten(0, 1))  # [B*S, N, H]
        cosines = functional.cosine_similarity(tokens, sound[:, None], dim=2, eps=1e-12)
        weights = cosines.exp() / cosines.exp().sum(dim=1, keepdim=True)
        lengths = tokens.square().sum(dim=2, keepdim=True).sqrt()
        grounded = (weights[:, :, None] * tokens / lengths).sum(dim=1)
        return self.fc_gl(torch.cat((tokens.mean(dim=1), grounded), dim=1).tanh()), weights

    def match(self, sound, frames):
        features = torch.cat((sound, frames), dim=1)
        for layer in (self.fc1, self.fc2, self.fc3):
            features = layer(features).relu()
        return self.fc4(features)

    def forward(self, video, audio, question, negative):
        asked = self.encode(question)
        sound = self.fc_a2(self.yb_fc_a(audio.flatten(0, 1)).mean(dim=1).relu())
        frames, weights = self.ground(video, sound)
        negative_frames, _ = self.ground(negative, sound)
        halves = []
        for seconds, attention, first, second, norm in (
            (sound, self.attn_a, self.linear21, self.linear22, self.norm2),
            (frames, self.attn_v, self.linear11, self.linear12, self.norm1),
        ):
            seconds = seconds.unflatten(0, (len(video), -1)).transpose(0, 1)
            read = attention(asked[None], seconds, seconds)[0][0]
            halves.append(norm(read + second(first(read).relu())) + seconds.mean(dim=0))
        fused = self.fc_fusion(torch.cat(halves, dim=1).tanh())
        logits = self.fc_ans((fused * asked).tanh())
        return logits, self.match(sound, frames), self.match(sound, negative_frames), weights


def make_head(**fields) -> LavishQuestionAnsweringHead:
    torch.manual_seed(5)
    sizes = {"vocab_size": WORDS, "hidden_width": H, "match_widths": (8, 6, 5), "dropout": 0.0, **fields}
    head = LavishQuestionAnsweringHead(D, ANSWERS, **sizes)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.5)
    return head


@pytest.fixture
def published() -> PublishedHead:
    torch.manual_seed(4)
    return PublishedHead()


@pytest.fixture
def head() -> LavishQuestionAnsweringHead:
    return make_head()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(6)
    return {
        "video_tokens": torch.randn(B, S, N, D),
        "audio_tokens": torch.randn(B, S, M, D),
        "input_ids": torch.randint(0, WORDS, (B, LENGTH)),
        "negative_video_tokens": torch.randn(B, S, N, D),
    }


def rows(inputs: dict[str, torch.Tensor], index: int, *without: str) -> dict[str, torch.Tensor]:
    return {name: None if name in without else value[index : index + 1] for name, value in inputs.items()}


# ------------------------------------------------------------------------------------------------- equal to the original


def test_recorded_cases(shared):
    folder = shared / "goldens" / "lavish"
    if not folder.is_dir():
        pytest.skip("no recorded cases of LAVISH in ../shared/goldens; a second formulation proves the same")
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    cases = {case: record for case, record in records.items() if record["kind"] == "avqa"}
    assert cases
    for case, record in cases.items():
        question_answering.check(folder, record, case)


def test_the_checker_counts_every_output(shared, monkeypatch):
    folder = shared / "goldens" / "lavish"
    if not folder.is_dir():
        pytest.skip("no recorded cases of LAVISH in ../shared/goldens; a second formulation proves the same")
    record = json.loads((folder / "avqa.json").read_text(encoding="utf-8"))
    tensors = question_answering.load_file(folder / "avqa.safetensors")
    monkeypatch.setattr(question_answering, "load_file", lambda path: tensors)
    names = [name for name in tensors if name.startswith("output/") and "block" not in name]
    for name in [name for name in names if "final_norm" not in name]:
        kept = tensors[name]
        tensors[name] = kept.copy()
        tensors[name].flat[0] += 1e-3
        with pytest.raises(AssertionError, match=name.removeprefix("output/")):
            question_answering.check(folder, record, "avqa")
        tensors[name] = kept
    tensors["output/never_heard_of"] = np.ones(1, np.float32)
    with pytest.raises(AssertionError, match="never_heard_of"):
        question_answering.check(folder, record, "avqa")
    del tensors["output/never_heard_of"]
    monkeypatch.setattr(mbt, "device", torch.float64)  # everything is placed
    question_answering.check(folder, record, "avqa")


def test_the_checker_counts_every_gradient(published, inputs, tmp_path):
    """A case made of the second formulation, in the form of the recorded ones, with gradients."""
    logits, positive, negative, _ = published(*inputs.values())
    rows = torch.stack((positive, negative), dim=1).flatten(0, 1)
    match = functional.cross_entropy(rows, torch.tensor([1, 0]).repeat(B * S))
    labels = torch.tensor([1, 6, 0])
    (functional.cross_entropy(logits, labels) + 0.5 * match).backward()
    tensors = {f"param/{name}": value for name, value in published.state_dict().items()}
    tensors |= {"input/question": inputs["input_ids"], "input/answer": labels, "output/answer_logits": logits}
    tensors |= {"output/final_norm_out/video": inputs["video_tokens"].flatten(0, 1)}
    tensors |= {"output/final_norm_out/audio": inputs["audio_tokens"].flatten(0, 1)}
    negatives = inputs["negative_video_tokens"].flatten(0, 1)
    tensors |= {"output/final_norm_out/negative_video_without_adapters": negatives}
    for name, parameter in published.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        tensors[f"output/grad/{name}"] = gradient
    tensors = {name: value.detach().numpy() for name, value in tensors.items()}
    record = {
        "kind": "avqa",
        "mode": "eval",
        "hidden": H,
        "mlp_widths": [2 * H, 8, 6, 5, 2],
        "attn_heads": 4,
        "vocab": WORDS,
    }
    record |= {"answers": ANSWERS, "swin_dim": D, "batch": B, "frames": S}
    save_file(tensors, tmp_path / "case.safetensors")
    question_answering.check(tmp_path, record, "case")
    for name in [name for name in tensors if name.startswith("output/grad/")]:
        kept = tensors[name]
        tensors[name] = kept.copy()
        tensors[name].flat[-1] += 1e-2 * max(np.abs(kept).max(), 1.0)
        save_file(tensors, tmp_path / "case.safetensors")
        with pytest.raises(AssertionError, match=r"grad |was dropped but has a gradient"):
            question_answering.check(tmp_path, record, "case")
        tensors[name] = kept


@pytest.mark.parametrize(("batch", "seconds"), [(1, 1), (1, 4), (3, 1)])
def test_one_clip_or_second_equals_the_second_formulation(published, head, inputs, batch, seconds):
    head.load_state_dict(convert_head(published.state_dict(), head))
    given = {name: value[:batch] if name == "input_ids" else value[:batch, :seconds] for name, value in inputs.items()}
    torch.testing.assert_close(head(**given).logits, published(*given.values())[0], atol=2e-6, rtol=0)


def test_equals_the_second_formulation(published, head, inputs):
    head.load_state_dict(convert_head(published.state_dict(), head))
    labels = torch.tensor([1, 6, 0])
    output = head(**inputs)
    logits, positive, negative, weights = published(*inputs.values())
    torch.testing.assert_close(output.logits, logits, atol=2e-6, rtol=0)
    torch.testing.assert_close(output.match_logits.flatten(0, 1), positive, atol=2e-6, rtol=0)
    torch.testing.assert_close(output.negative_match_logits.flatten(0, 1), negative, atol=2e-6, rtol=0)
    torch.testing.assert_close(output.grounding_weights.flatten(0, 1), weights, atol=1e-6, rtol=0)
    torch.testing.assert_close(head.question_encoder(inputs["input_ids"]), published.encode(inputs["input_ids"]))
    # The published rows: positive, negative, positive, ... with the labels 1, 0, 1, ...
    interleaved = torch.stack((positive, negative), dim=1).flatten(0, 1)
    match = functional.cross_entropy(interleaved, torch.tensor([1, 0]).repeat(B * S))
    answer = functional.cross_entropy(logits, labels)
    losses = question_answering_loss(output, labels)
    for ours, reference in zip(losses, (answer + 0.5 * match, answer, match)):
        torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(question_answering_loss(output, labels, 2.0).loss, answer + 2 * match)

    losses.loss.backward()
    (answer + 0.5 * match).backward()
    ours = {name: parameter.grad for name, parameter in head.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in published.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is None} == UNUSED
    gradients = split_attention({name: gradient for name, gradient in gradients.items() if gradient is not None})
    assert len(gradients) == len(ours)
    for source, reference in gradients.items():
        reference = torch.from_numpy(reference.copy())
        found = ours[head_rules()[source][0]]
        torch.testing.assert_close(found, reference, atol=1e-3 * float(reference.abs().max()) + 1e-7, rtol=0)


def test_several_questions_equal_one_by_one(head, inputs):
    questions = torch.randint(0, WORDS, (B, 3, LENGTH))
    together = head(**{**inputs, "input_ids": questions})
    assert together.logits.shape == (B, 3, ANSWERS)
    for index in range(3):
        alone = head(**{**inputs, "input_ids": questions[:, index]})
        assert alone.logits.shape == (B, ANSWERS)
        torch.testing.assert_close(together.logits[:, index], alone.logits)
        assert torch.equal(together.match_logits, alone.match_logits)
        assert torch.equal(together.grounding_weights, alone.grounding_weights)


def test_the_order_of_seconds_has_no_influence(head, inputs):
    order = torch.tensor([2, 0, 3, 1])
    tokens = {name: value if name == "input_ids" else value[:, order] for name, value in inputs.items()}
    before, after = head(**inputs), head(**tokens)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.match_logits, before.match_logits[:, order])
    moved = head(**{**inputs, "video_tokens": inputs["video_tokens"][:, order]})  # apart from their sound
    assert (moved.logits - before.logits).abs().max() > 1e-3


def test_padding_is_read(head, inputs):
    """The features of a question depend on how far it is padded, and the embedding of the padding is trained."""
    question = torch.tensor([[3, 4, 5]])
    features = [head.question_encoder(functional.pad(question, (0, count))) for count in (0, 1, 5)]
    assert (features[0] - features[1]).abs().max() > 1e-2
    assert (features[1] - features[2]).abs().max() > 1e-2
    features[2].sum().backward()
    assert head.question_encoder.word_embeddings.weight.grad[0].abs().max() > 0
    assert not head.question_encoder.word_embeddings.weight.grad[6:].any()


def test_dropout_is_for_training_alone(inputs):
    head = make_head(dropout=0.5)
    head.eval()
    assert torch.equal(head(**inputs).logits, head(**inputs).logits)
    head.train()
    assert not torch.equal(head(**inputs).logits, head(**inputs).logits)
    assert torch.equal(
        head(**inputs).match_logits, head(**inputs).match_logits
    )  # no dropout before grounding and match


# --------------------------------------------------------------------------------------------------- missing modalities


@pytest.mark.parametrize("filler", [0.0, 1e30, math.nan])
def test_a_mixed_batch_equals_one_by_one(head, inputs, filler):
    labels = torch.tensor([1, 6, 0])
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    filled = {name: value.clone() for name, value in inputs.items()}
    filled["audio_tokens"][1] = filler
    filled["video_tokens"][2] = filler
    for name in ("video_tokens", "audio_tokens", "negative_video_tokens"):
        filled[name].requires_grad_(True)
    output = head(**filled, modality_mask=mask)
    losses = question_answering_loss(output, labels)
    losses.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in head.named_parameters()}
    head.zero_grad()
    assert output.match_mask.tolist() == [True, False, False]
    assert not filled["audio_tokens"].grad[1].any()
    assert not filled["video_tokens"].grad[2].any()
    assert not filled["negative_video_tokens"].grad[1:].any()

    alone = [
        head(**rows(inputs, 0)),
        head(**rows(inputs, 1, "audio_tokens", "negative_video_tokens")),
        head(**rows(inputs, 2, "video_tokens", "negative_video_tokens")),
    ]
    for index, single in enumerate(alone):
        torch.testing.assert_close(output.logits[index], single.logits[0])
    torch.testing.assert_close(output.match_logits[:1], alone[0].match_logits)
    torch.testing.assert_close(output.negative_match_logits[:1], alone[0].negative_match_logits)
    assert not output.match_logits[1:].any()
    assert not output.negative_match_logits[1:].any()
    assert alone[1].match_logits is None
    torch.testing.assert_close(output.grounding_weights[:1], alone[0].grounding_weights)
    torch.testing.assert_close(output.grounding_weights[1], torch.full((S, N), 1 / N))
    assert not output.grounding_weights[2].any()

    by_one = [question_answering_loss(single, labels[index : index + 1]) for index, single in enumerate(alone)]
    torch.testing.assert_close(losses.answer, sum(each.answer for each in by_one) / B)
    torch.testing.assert_close(losses.match, by_one[0].match)
    (sum(each.answer for each in by_one) / B + 0.5 * by_one[0].match).backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_a_mask_of_complete_clips_changes_nothing(head, inputs):
    plain, masked = head(**inputs), head(**inputs, modality_mask=torch.ones(B, 2, dtype=torch.bool))
    for name in ("logits", "match_logits", "negative_match_logits", "grounding_weights"):
        assert torch.equal(plain[name], masked[name]), name
    labels = torch.tensor([1, 6, 0])
    for ours, reference in zip(question_answering_loss(masked, labels), question_answering_loss(plain, labels)):
        torch.testing.assert_close(ours, reference)


def test_clips_without_a_negative_stay_out_of_the_match_loss(head, inputs):
    labels = torch.tensor([1, 6, 0])
    inputs["negative_video_tokens"][1] = math.nan
    output = head(**inputs, negative_mask=torch.tensor([True, False, True]))
    losses = question_answering_loss(output, labels)
    losses.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    assert output.match_logits[1].any()  # the scores of its own frames are still given
    singles = [question_answering_loss(head(**rows(inputs, i)), labels[i : i + 1]).match for i in (0, 2)]
    torch.testing.assert_close(losses.match, sum(singles) / 2)
    without_negatives = head(**inputs, negative_mask=torch.zeros(B, dtype=torch.bool))
    assert question_answering_loss(without_negatives, labels).match == 0


def test_without_negatives_there_is_no_match_loss(head, inputs):
    output = head(**rows(inputs, 0, "negative_video_tokens"))
    assert output.negative_match_logits is None
    losses = question_answering_loss(output, torch.tensor([2]))
    assert losses.match is None
    assert torch.equal(losses.loss, losses.answer)
    losses.loss.backward()
    for name, parameter in head.named_parameters():  # data-parallel training needs a gradient of each
        assert parameter.grad is not None, name
        assert parameter.grad.any() != name.startswith("match_head"), name


def test_heads_of_one_modality(head, inputs):
    """Equal to the head of both where the other modality is missing; its parts are not there."""
    for modality, other in (("video", "audio"), ("audio", "video")):
        single = make_head(modalities=(modality,))
        names = {name.split(".")[0] for name in single.state_dict()}
        assert not {f"{other}_projection", f"{other}_attention", "match_head"} & names
        assert ("grounding" in names) == (modality == "video")
        state = {name: value for name, value in head.state_dict().items() if name in single.state_dict()}
        state["fusion.weight"] = state["fusion.weight"][:, H:] if modality == "video" else state["fusion.weight"][:, :H]
        single.load_state_dict(state)
        given = rows(inputs, 0, f"{other}_tokens", "negative_video_tokens")
        output = single(**given)
        torch.testing.assert_close(output.logits, head(**given).logits)
        assert output.match_logits is None
        assert question_answering_loss(output, torch.tensor([2])).match is None
        with pytest.raises(ValueError, match=f"`{other}_tokens` were given, but this head has only {modality}"):
            single(**rows(inputs, 0, "negative_video_tokens"))


def test_questions_labelled_ignored_do_not_count(head, inputs):
    questions = torch.randint(0, WORDS, (B, 2, LENGTH))
    output = head(**{**inputs, "input_ids": questions})
    labels = torch.tensor([[1, 2], [3, -100], [-100, -100]])
    counted = functional.cross_entropy(output.logits.flatten(0, 1)[:3], torch.tensor([1, 2, 3]))
    torch.testing.assert_close(question_answering_loss(output, labels).answer, counted)
    with pytest.raises(ValueError, match=r"`labels` must be integers \[3, 2\], one for each question, got \(3,\)"):
        question_answering_loss(output, labels[:, 0])


# ------------------------------------------------------------------------------------------------------- house's promises


def test_every_layer_is_called_through_its_module(head, inputs):
    called = set()
    layers = {name: layer for name, layer in head.named_modules() if list(layer.parameters(recurse=False))}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
    head(**inputs)
    assert called == set(layers)
    assert {type(layer) for layer in layers.values()} == {nn.Linear, nn.Embedding, nn.LayerNorm}


@pytest.mark.further  # a part of the graph of lavish-questions in test_model_graphs.py
def test_compiles_as_one_graph_and_exports_with_a_dynamic_batch(inputs):
    head = make_head().eval()
    inputs["input_ids"] = torch.randint(0, WORDS, (B, 2, LENGTH))
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits, head(**inputs).logits)
    batch = torch.export.Dim("batch", max=64)
    exported = torch.export.export(head, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    two = {name: value[:2] for name, value in inputs.items()}
    torch.testing.assert_close(exported.module()(**two).logits, head(**two).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(inputs, dtype):
    reference = make_head().eval()(**inputs)
    head = make_head().eval().to(dtype)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    given = {name: value if name == "input_ids" else value.to(dtype) for name, value in inputs.items()}
    output = head(**given)
    assert output.logits.dtype == dtype
    torch.testing.assert_close(output.logits.float(), reference.logits, atol=0.1, rtol=0)
    losses = question_answering_loss(head(**given, modality_mask=mask), torch.tensor([1, 6, 0]))
    losses.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(make_head().eval()(**inputs).logits.float(), reference.logits, atol=0.1, rtol=0)


def test_initial_weights_are_those_of_the_original():
    torch.manual_seed(0)
    head = LavishQuestionAnsweringHead(96, 42, hidden_width=128)
    bounds = {
        "question_encoder.projection.weight": 256**-0.5,
        "question_encoder.lstm.input_gates.weight": 128**-0.5,
        "question_encoder.lstm.hidden_gates.bias": 128**-0.5,
        "video_projection.weight": 96**-0.5,
        "match_head.layers.1.bias": 128**-0.5,
        "video_attention.q_proj.weight": nn.MultiheadAttention(128, 4).in_proj_weight.abs().max().item(),
        "audio_attention.o_proj.weight": 128**-0.5,
    }
    state = head.state_dict()
    for name, bound in bounds.items():
        assert state[name].abs().max().item() == pytest.approx(bound, rel=0.05), name
        assert state[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.15), name
    assert state["question_encoder.word_embeddings.weight"].std().item() == pytest.approx(1, rel=0.05)
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert not state[f"video_attention.{part}.bias"].any()
    with torch.device("meta"):
        empty = LavishQuestionAnsweringHead(96, 42, hidden_width=128)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    empty.to_empty(device="cpu").apply(init_question_answering_layer)
    for name, value in empty.state_dict().items():
        if "norm" not in name:
            assert value.std().item() == pytest.approx(state[name].std().item(), rel=0.5, abs=1e-3), name


def test_published_widths_are_the_defaults():
    with torch.device("meta"):
        head = LavishQuestionAnsweringHead(1536, 42)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes["question_encoder.word_embeddings.weight"] == (93, 512)
    assert [shapes[f"match_head.layers.{i}.weight"] for i in range(4)] == [
        (512, 1024),
        (256, 512),
        (128, 256),
        (2, 128),
    ]
    assert shapes["video_attention.fc1.weight"] == (512, 512)
    assert shapes["classifier.weight"] == (42, 512)


# -------------------------------------------------------------------------------------------------------------- conversion


def test_conversion_is_strict(published, head):
    params = published.state_dict()
    state = convert_head(params, head)
    assert state.keys() == head.state_dict().keys()
    assert (
        convert_head({name: value for name, value in params.items() if name not in UNUSED}, head).keys() == state.keys()
    )
    for name in ("fc4.bias", "attn_v.in_proj_weight", "question_encoder.lstm.bias_hh_l0"):
        with pytest.raises(ConversionError, match=f"source tensors missing: .*{name}"):
            convert_head({key: value for key, value in params.items() if key != name}, head)
    with pytest.raises(ConversionError, match=r"source tensors without a target: .*fc5\.weight"):
        convert_head({**params, "fc5.weight": torch.ones(2)}, head)
    with pytest.raises(ConversionError, match=r"fc_ans.bias has shape \(9,\), but classifier.bias has \(7,\)"):
        convert_head({**params, "fc_ans.bias": torch.ones(9)}, head)
    with pytest.raises(ConversionError, match=r"attn_a\.in_proj_bias has shape .*equal width"):
        convert_head({**params, "attn_a.in_proj_bias": torch.ones(23)}, head)
    with pytest.raises(ConversionError, match=r"maps to audio_projection\.weight, which the model does not have"):
        convert_head(params, make_head(modalities=("video",)))


def test_half_precision_checkpoints_convert(published, head):
    half = {name: value.to(torch.bfloat16) for name, value in published.state_dict().items()}
    state = convert_head(half, head)
    assert {value.dtype for value in state.values()} == {torch.float32}


def grounding_params(width: int, match: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """As saved from DataParallel."""
    torch.manual_seed(8)
    sizes = (2 * width, *match, 2)
    layers = {"fc_a1": (width, 3), "fc_a2": (width, width), "fc_gl": (width, 2 * width)}
    layers |= {f"fc{number + 1}": (sizes[number + 1], sizes[number]) for number in range(4)}
    params = {f"module.{name}.weight": torch.randn(shape) for name, shape in layers.items()}
    params |= {f"module.{name}.bias": torch.randn(shape[0]) for name, shape in layers.items()}
    params["module.visual_net.conv1.weight"] = torch.randn(4, 3, 7, 7)
    params["module.visual_net.bn1.num_batches_tracked"] = torch.tensor(3)
    return params


def test_grounding_checkpoint_starts_its_own_layers(tmp_path):
    file, params = tmp_path / "grounding.pt", grounding_params(64, (64, 32, 16))
    torch.save(params, file)
    torch.manual_seed(0)
    fields = tiny_questions().to_dict()
    fields.pop("model_type")
    model = LavishForQuestionAnswering.from_grounding(file, **fields)
    torch.manual_seed(0)
    before, after = LavishForQuestionAnswering(tiny_questions()).head.state_dict(), model.head.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {
        f"{name}.{kind}"
        for name in ("audio_dense", "grounding.projection", *(f"match_head.layers.{i}" for i in range(4)))
        for kind in ("weight", "bias")
    }
    assert torch.equal(after["match_head.layers.2.weight"], params["module.fc3.weight"])
    assert torch.equal(after["audio_dense.bias"], params["module.fc_a2.bias"])
    # Beside a backbone, and from a file without the prefix.
    torch.save(without_module(params), file)
    fields.pop("backbone_config")
    beside = LavishForQuestionAnswering.from_grounding(file, model.lavish.backbone, **fields)
    assert all(torch.equal(beside.head.state_dict()[name], after[name]) for name in changed)
    backbone = model.lavish.backbone.state_dict()
    assert all(torch.equal(value, backbone[name]) for name, value in beside.lavish.backbone.state_dict().items())


def test_other_files_are_no_grounding_checkpoint(tmp_path):
    file, plain = tmp_path / "grounding.pt", without_module(grounding_params(64, (64, 32, 16)))
    model = LavishForQuestionAnswering(tiny_questions())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for params, message in (
        ({name: value for name, value in plain.items() if name != "fc_gl.bias"}, r"grounding\.pt: .*lacks fc_gl\.bias"),
        ({**plain, "fc_st.weight": torch.ones(3, 3)}, r"holds fc_st\.weight, which no such checkpoint has"),
        ({**plain, "fc1.weight": torch.ones(512, 1024)}, r"fc1\.weight has shape \(512, 1024\)"),
        ({"epoch": 3}, "expected tensors by name"),
        ({"code": Fraction(1, 2)}, "not a PyTorch checkpoint of tensors alone"),
    ):
        torch.save(params, file)
        with pytest.raises(ValueError, match=message):
            model.load_grounding(file)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="no such file"):
        model.load_grounding(tmp_path / "absent.pt")
    torch.save(plain, file)
    with pytest.raises(ValueError, match=r"the model has no audio_dense\.bias, .*it needs both modalities"):
        LavishForQuestionAnswering(tiny_questions(modalities=("video",))).load_grounding(file)
