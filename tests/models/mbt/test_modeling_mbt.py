"""MBT beyond its recorded cases: sizes, readouts, losses, updates, stochastic depth, initialisation, Auto classes."""

import json

import pytest
import torch
from equality import assert_outputs_of, assert_rounding
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)

from hf_avfusion import MBTConfig, MBTForAudioVisualClassification, MBTModel
from hf_avfusion.models.shared.layers_vit import drop_branch

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "num_mel_bins": 16,
    "spectrogram_length": 24,
    "fusion_layer": 1,
    "num_labels": 5,
}


def tiny(**changes) -> MBTForAudioVisualClassification:
    torch.manual_seed(0)
    model = MBTForAudioVisualClassification(MBTConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():
        model.classifier.weight.normal_()
    return model


def inputs(size: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.rand(size, 4, 3, 16, 16, generator=generator) * 2 - 1,
        "input_features": torch.randn(size, 24, 16, generator=generator),
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [  # counted in the original: ViT-B, 527 classes, 8 s of spectrogram
        ({"num_frames": 8}, 173_202_959),
        ({"num_frames": 8, "tubelet_size": 1}, 173_215_247),
        ({}, 175_009_295),
        ({"readout": "mean"}, 175_005_455),
        ({"num_frames": 8, "tubelet_size": 1, "share_encoder": True}, 88_160_783),
        ({"modalities": ("audio",)}, 86_360_591),
        ({"modalities": ("video",), "readout": "mean"}, 89_050_127),
    ],
)
def test_parameter_counts_of_the_published_models(fields, expected):
    with torch.device("meta"):
        model = MBTForAudioVisualClassification(MBTConfig(num_labels=527, **fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_default_is_mbt_base_and_sizes_only_fix_numbers():
    assert MBTConfig().to_diff_dict() == MBTConfig.base().to_diff_dict()
    small, large = MBTConfig.small(num_labels=7), MBTConfig.large(num_frames=8)
    assert (small.hidden_size, small.num_attention_heads, small.fusion_layer, small.num_labels) == (384, 6, 8, 7)
    assert (large.hidden_size, large.num_hidden_layers, large.fusion_layer, large.num_frames) == (1024, 24, 16, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion": "cross"}, "`fusion` must be one of"),
        ({"readout": "gap"}, "`readout` must be one of"),
        ({"fusion_layer": 13}, r"between 0 \(early\) and `num_hidden_layers` = 12"),
        ({"hidden_size": 100}, "multiple of `num_attention_heads`"),
        ({"modalities": ("video", "text")}, "`modalities` must name one or both"),
        ({"modalities": ()}, "`modalities` must name one or both"),
        ({"num_bottleneck_tokens": 0}, "`num_bottleneck_tokens` must be at least 1"),
        ({"num_sampled_frames": 4}, "needs `tubelet_size=1`"),
        ({"class_splits": {"verb": 3, "noun": 4}, "num_labels": 5}, "add up to 7 classes"),
        ({"problem_type": "multi_head_classification"}, "must be set together"),
        ({"problem_type": "multilabel"}, "`problem_type` must be one of"),
        ({"representation_size": 0}, "`representation_size` must be at least 1"),
        ({"num_audio_channels": 0}, "`num_audio_channels` must be at least 1"),
        ({"drop_path_rate": 1.5}, "`drop_path_rate` must lie in"),
        ({"spectrogram_length": 8}, "smaller than one patch"),
        ({"hidden_size": "768"}, "hidden_size"),
        ({"image_size": 100}, "`image_size` 100 is not a multiple of 16.*nearest that fit are 96 and 112"),
        ({"image_size": (96, 100)}, "`image_size` 100 is not a multiple of 16"),
        ({"num_frames": 5}, "`num_frames` 5 is not a multiple of 2.*4 and 6"),
        ({"spectrogram_length": 1000}, "`spectrogram_length` 1000 is not a multiple of 16.*992 and 1008"),
        ({"num_mel_bins": 120}, "`num_mel_bins` 120 is not a multiple of 16.*112 and 128"),
        ({"num_sampled_frames": 3, "tubelet_size": 1, "image_size": 100}, "`image_size` 100 is not a multiple of 16"),
        ({"num_labels": 0}, "`id2label` is empty: name at least 1 class"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"x": 0, "y": 7}}, "`label2id` .* contradicts `id2label`"),
        ({"class_splits": [["a", 2], ["a", 3]]}, "`class_splits` names a head twice"),
        ({"layer_norm_eps": float("nan")}, "`layer_norm_eps` must be a finite number"),
        ({"layer_norm_eps": -1e-6}, "`layer_norm_eps` must be at least 0"),
        ({"initializer_range": float("inf")}, "`initializer_range` must be a finite number"),
        ({"classifier_bias_init": float("nan")}, "`classifier_bias_init` must be a finite number"),
        ({"id2label": {0: "a", 2: "b"}}, "`id2label` must name the classes 0 to 1"),
        ({"class_splits": {"verb": 7, "noun": -2}}, "each head at least 1 class"),
    ],
)
def test_contradictory_configs_name_their_fields(fields, message):
    with pytest.raises(Exception, match=message):
        MBTConfig(**fields)


OVERRIDES = {
    "bottleneck_update": "audio_frist",
    "fusion": "bottlneck",
    "readout": "tokens",
    "position_embeddings": "sinus",
    "problem_type": "multi_head_classification",
    "fusion_layer": 99,
    "num_hidden_layers": 1,
    "num_attention_heads": 5,
    "hidden_size": 25,
    "hidden_act": "gleu",
    "num_bottleneck_tokens": 0,
    "num_sampled_frames": 2,
    "image_size": 4,
    "spectrogram_length": 2,
    "drop_path_rate": 1.5,
    "layer_norm_eps": float("nan"),
    "modalities": ("audio", "text"),
    "class_splits": {"a": 2, "b": -1},
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_bad_fields_are_refused_when_a_model_is_built(name, tmp_path):
    tiny(fusion_layer=2).save_pretrained(tmp_path)
    for load in (MBTForAudioVisualClassification, AutoModelForVideoClassification):
        with pytest.raises((ValueError, StrictDataclassError), match=name):
            load.from_pretrained(tmp_path, **{name: OVERRIDES[name]})
    config = MBTConfig.from_pretrained(tmp_path)
    setattr(config, name, OVERRIDES[name])
    with pytest.raises((ValueError, StrictDataclassError), match=name):
        MBTForAudioVisualClassification(config)


def test_remainders_are_dropped_on_request(tmp_path):
    """A config that was saved before the field existed loads as True, with one warning."""
    sizes = {"image_size": (20, 16), "num_frames": 5, "spectrogram_length": 26, "num_mel_bins": 18}
    model = tiny(**sizes, drop_remainder=True)
    model.save_pretrained(tmp_path)
    assert MBTConfig.from_pretrained(tmp_path).drop_remainder is True
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["drop_remainder"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.warns(UserWarning, match="before `drop_remainder` existed") as warned:
        loaded = MBTForAudioVisualClassification.from_pretrained(tmp_path)
    assert len(warned) == 1
    assert loaded.config.drop_remainder is True
    with pytest.warns(
        UserWarning, match="the last 2 of `spectrogram_length` 26"
    ):  # other sizes given do not refuse this one
        assert MBTConfig.from_pretrained(tmp_path, image_size=16, num_frames=4).drop_remainder is True
    with pytest.warns(UserWarning, match="before `drop_remainder` existed"):
        assert MBTConfig.from_json_file(tmp_path / "config.json").drop_remainder is True
    whole = {"image_size": 16, "num_frames": 4, "spectrogram_length": 24, "num_mel_bins": 16}
    tiny(**whole).save_pretrained(tmp_path)
    assert MBTConfig.from_pretrained(tmp_path).drop_remainder is False
    with pytest.raises(StrictDataclassError, match="`image_size` 20 is not a multiple of 8"):
        MBTConfig.from_pretrained(tmp_path, image_size=20)
    # Sampled frames are stacked, so that patches may straddle two of them.
    assert MBTConfig(num_sampled_frames=4, tubelet_size=1, image_size=(100, 112)).video_patch_grid == (25, 7)


def test_fields_that_follow_from_others_are_set_again(tmp_path):
    tiny(num_hidden_layers=3, fusion_layer=1).save_pretrained(tmp_path)
    loaded = MBTConfig.from_pretrained(tmp_path, fusion_layer=None)
    assert loaded.fusion_layer == 2


@pytest.mark.parametrize(
    ("changes", "labels", "problem_type"),
    [
        ({"num_labels": 3, "class_splits": None}, 3, None),
        ({"class_splits": None}, 5, None),
        ({"class_splits": {"a": 4, "b": 2, "c": 1}}, 7, "multi_head_classification"),
        ({"class_splits": {"a": 1, "b": 4}}, 5, "multi_head_classification"),
        ({"class_splits": None, "problem_type": "multi_label_classification"}, 5, "multi_label_classification"),
    ],
)
def test_a_multi_head_checkpoint_is_relabelled(changes, labels, problem_type, tmp_path):
    splits = {"verb": 2, "noun": 3}
    tiny(class_splits=splits, num_labels=5).save_pretrained(tmp_path / "verbs")
    loading = MBTForAudioVisualClassification.from_pretrained
    model = loading(tmp_path / "verbs", ignore_mismatched_sizes=True, **changes)
    model.save_pretrained(tmp_path / "relabelled")
    for config in (model.config, MBTConfig.from_pretrained(tmp_path / "relabelled")):
        assert (config.num_labels, config.class_splits) == (labels, changes["class_splits"])
        assert config.problem_type == problem_type
    assert model.classifier.out_features == labels
    with pytest.raises(StrictDataclassError, match="`class_splits=None` for a single head"):
        loading(tmp_path / "verbs", num_labels=3, ignore_mismatched_sizes=True)


def test_auto_classes_know_mbt(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MBTConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is MBTModel
    assert type(AutoModelForVideoClassification.from_pretrained(tmp_path)) is MBTForAudioVisualClassification


def test_one_stream_of_a_trained_pair_can_be_loaded_alone(tmp_path):
    model = tiny(fusion_layer=3)  # late fusion: a stream alone must give its own logits
    model.save_pretrained(tmp_path)
    audio = MBTForAudioVisualClassification.from_pretrained(tmp_path, modalities=("audio",))
    given = inputs()
    with torch.no_grad():
        expected = model(**given).audio_logits
        assert_outputs_of(audio, expected, lambda: audio(input_features=given["input_features"]).logits)
    with pytest.raises(ValueError, match="no video stream"):
        audio(**given)


@torch.no_grad()
def test_token_logits_are_the_mean_of_the_streams():
    output = tiny()(**inputs())
    torch.testing.assert_close(output.logits, (output.video_logits + output.audio_logits) / 2)


@torch.no_grad()
@pytest.mark.parametrize(("readout", "reduce"), [("mean", torch.mean), ("max", torch.amax), ("sum", torch.sum)])
def test_pooled_readouts_pool_all_tokens_together(readout, reduce):
    model = tiny(readout=readout, representation_size=6)
    output = model(**inputs())
    tokens = model.mbt(**inputs()).last_hidden_state
    features = torch.tanh(model.pre_logits(reduce(tokens, dim=1)))
    torch.testing.assert_close(output.logits, model.classifier(features))
    assert output.video_logits is None


@torch.no_grad()
@pytest.mark.parametrize(("readout", "reduce"), [("mean", torch.mean), ("max", torch.amax), ("sum", torch.sum)])
def test_streams_can_be_pooled_separately(readout, reduce):
    model = tiny(readout=f"stream_{readout}", position_embeddings="sinusoidal", use_modality_tokens=True)
    output, states = model(**inputs()), model.mbt(**inputs())
    video = model.classifier(reduce(states.video_hidden_state, dim=1))
    audio = model.classifier(reduce(states.audio_hidden_state, dim=1))
    torch.testing.assert_close(output.video_logits, video)
    torch.testing.assert_close(output.logits, (video + audio) / 2)
    assert model.mbt.bottleneck.shape[1] == 4  # no additional row for a CLS token
    assert not any("position_embeddings" in name for name in model.state_dict())


@torch.no_grad()
def test_chained_updates_differ_from_symmetric_in_the_second_stream():
    """With one fusion layer, the first modality of a chained update reads the same bottleneck as in a symmetric update."""
    given = inputs()
    outputs = {}
    for update in ("symmetric", "video_first", "audio_first"):
        model = tiny(fusion_layer=2, bottleneck_update=update)
        model.mbt.bottleneck.copy_(torch.randn(model.mbt.bottleneck.shape, generator=torch.Generator().manual_seed(3)))
        outputs[update] = model(**given)
    assert_rounding(outputs["video_first"].video_logits, outputs["symmetric"].video_logits)
    assert_rounding(outputs["audio_first"].audio_logits, outputs["symmetric"].audio_logits)
    assert not torch.allclose(outputs["video_first"].audio_logits, outputs["symmetric"].audio_logits)
    assert not torch.allclose(outputs["audio_first"].video_logits, outputs["symmetric"].video_logits)


@torch.no_grad()
def test_streams_exchange_through_the_bottleneck_only():
    given = inputs()
    other = {**given, "input_features": given["input_features"] + 1}
    # No layer reads what the last layer writes to the bottleneck, so a single fusion layer there has no effect.
    for fusion_layer, travels in ((1, True), (2, False), (3, False)):
        model = tiny(fusion_layer=fusion_layer)
        assert torch.equal(model(**given).video_logits, model(**other).video_logits) is not travels


@torch.no_grad()
def test_streams_are_separate_in_evaluation_without_test_bottlenecks():
    model = tiny(test_with_bottlenecks=False)
    given, late = inputs(), tiny(fusion_layer=3)
    late.load_state_dict({k: v for k, v in model.state_dict().items() if k != "mbt.bottleneck"})
    assert_outputs_of(late, model(**given).logits, lambda: late(**given).logits)
    assert not torch.allclose(model.train()(**given).logits, late(**given).logits)


def test_stochastic_depth_grows_linearly_and_does_not_rescale():
    config = MBTConfig(**{**TINY, "drop_path_rate": 0.4})
    model = MBTModel(config)
    assert [layer.video.drop_path_rate for layer in model.layers] == pytest.approx([0.0, 0.2, 0.4])
    torch.manual_seed(0)
    branch = torch.ones(2000, 3, 4)
    dropped = drop_branch(branch, 0.4, training=True)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}  # kept branches are not divided by the keep probability
    assert torch.equal(dropped.amin(dim=(1, 2)), dropped.amax(dim=(1, 2)))  # whole samples
    assert dropped[:, 0, 0].mean().item() == pytest.approx(0.6, abs=0.04)
    assert drop_branch(branch, 0.4, training=False) is branch


def test_training_loss_is_the_mean_of_the_streams_losses():
    model = tiny(label_smoothing=0.2).train()
    given, labels = inputs(), torch.tensor([1, 3])
    output = model(**given, labels=labels)
    smooth = {"label_smoothing": 0.2}
    losses = [
        torch.nn.functional.cross_entropy(x, labels, **smooth) for x in (output.video_logits, output.audio_logits)
    ]
    torch.testing.assert_close(output.loss, sum(losses) / 2)
    evaluated = model.eval()(**given, labels=labels)
    torch.testing.assert_close(evaluated.loss, torch.nn.functional.cross_entropy(evaluated.logits, labels))


def test_losses_skip_missing_modalities():
    model = tiny().train()
    given, labels = inputs(), torch.tensor([1, 3])
    mask = torch.tensor([[True, True], [False, True]])
    output = model(**given, labels=labels, modality_mask=mask)
    video = torch.nn.functional.cross_entropy(output.video_logits, labels, reduction="none")
    audio = torch.nn.functional.cross_entropy(output.audio_logits, labels, reduction="none")
    torch.testing.assert_close(output.loss, ((video[0] + audio[0]) / 2 + audio[1]) / 2)


def test_mixed_labels_of_each_modality():
    model = tiny(problem_type="multi_label_classification").train()
    given = inputs()
    labels, audio_labels = torch.rand(2, 5), torch.rand(2, 5)
    output = model(**given, labels=labels, audio_labels=audio_labels)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    video = bce(output.video_logits, labels, reduction="none").sum(1).mean()
    audio = bce(output.audio_logits, audio_labels, reduction="none").sum(1).mean()
    torch.testing.assert_close(output.loss, (video + audio) / 2)
    with pytest.raises(ValueError, match="audio_labels"):
        tiny(readout="mean").train()(**given, labels=labels, audio_labels=audio_labels)


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({}, [0, 1, 2, 3]),
        ({}, [[1.0, 0, 0, 1, 0], [0, 1.0, 1, 0, 0]]),
        ({"class_splits": {"verb": 3, "noun": 2}}, [[2, 0], [1, 1]]),
        ({"readout": "mean"}, [3, 4]),
    ],
)
def test_plain_trainer_evaluates_and_accumulates(tmp_path, fields, labels):
    """transformers' Trainer: evaluation has a loss, predictions are logits, accumulated small batches equal one large batch."""
    given = inputs(4)
    rows = [{**{name: given[name][i] for name in given}, "labels": labels[i % len(labels)]} for i in range(4)]

    def train(batch: int, accumulation: int) -> tuple[Trainer, torch.Tensor]:
        model = tiny(**fields)
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        return trainer, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    trainer, at_once = train(4, 1)
    torch.testing.assert_close(train(1, 4)[1], at_once, rtol=0, atol=1e-4)
    assert trainer.evaluate(rows)["eval_loss"] > 0
    prediction = trainer.predict(rows)
    assert prediction.predictions.shape == (4, 5)
    assert len(prediction.label_ids) == 4


def test_heads_of_a_multi_head_model():
    fields = {key: value for key, value in TINY.items() if key != "num_labels"}
    model = MBTForAudioVisualClassification(MBTConfig(**fields, class_splits={"verb": 3, "noun": 4})).eval()
    assert model.classifier.out_features == 7
    labels = torch.tensor([[2, 0], [1, 3]])
    output = model(**inputs(), labels=labels)
    verb, noun = output.logits.split([3, 4], dim=1)
    ce = torch.nn.functional.cross_entropy
    torch.testing.assert_close(output.loss, (ce(verb, labels[:, 0]) + ce(noun, labels[:, 1])) / 2)
    # Mixed labels: the concatenated probabilities of the heads.
    one_hot = torch.nn.functional.one_hot
    soft = torch.cat([one_hot(labels[:, 0], 3), one_hot(labels[:, 1], 4)], dim=1).float()
    torch.testing.assert_close(model(**inputs(), labels=soft).loss, output.loss)
    mixed = 0.3 * soft + 0.7 * soft.flip(0)
    torch.testing.assert_close(
        model(**inputs(), labels=mixed).loss,
        -((mixed[:, :3] * verb.log_softmax(1)).sum(1) + (mixed[:, 3:] * noun.log_softmax(1)).sum(1)).mean() / 2,
    )
    with pytest.raises(ValueError, match=r"one index per head of \['verb', 'noun'\]"):
        model(**inputs(), labels=torch.tensor([1, 2]))


def test_heads_keep_their_order_when_saved(tmp_path):
    """transformers sorts the keys of maps in config.json; the heads must not be sorted."""
    MBTConfig(class_splits={"verb": 3, "noun": 4}).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert list(loaded.class_splits.items()) == [("verb", 3), ("noun", 4)]
    assert loaded.num_labels == 7
    loaded.save_pretrained(tmp_path)
    assert list(AutoConfig.from_pretrained(tmp_path).class_splits) == ["verb", "noun"]


def test_fresh_weights_follow_the_published_initialisation():
    torch.manual_seed(0)
    config = MBTConfig(**{**TINY, "hidden_size": 96, "intermediate_size": 384, "classifier_bias_init": -5.0})
    model = MBTForAudioVisualClassification(config)
    block = model.mbt.layers[0].video
    bound = (6 / (96 + 96)) ** 0.5  # Xavier uniform
    assert block.attention.q_proj.weight.abs().max() <= bound
    assert block.attention.q_proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert block.attention.q_proj.bias.abs().max() == 0
    assert block.mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.2)
    kernel = model.mbt.video_embeddings.patch_embeddings.projection.weight
    assert kernel.std().item() == pytest.approx(kernel[0].numel() ** -0.5, rel=0.05)
    assert model.mbt.bottleneck.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.mbt.video_embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.mbt.audio_embeddings.cls_token.abs().max() == 0
    assert model.classifier.weight.abs().max() == 0
    assert (model.classifier.bias == -5.0).all()


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(5)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40, image_size=40, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path)
    return tmp_path, ViTModel.from_pretrained(tmp_path)


def test_from_vit_initialises_both_streams_from_a_checkpoint(vit):
    path, source = vit
    model = MBTForAudioVisualClassification.from_vit(
        str(path), num_frames=4, num_mel_bins=16, spectrogram_length=24, num_labels=5
    )
    base = model.mbt
    assert model.config.fusion_layer == 2
    for layer, block in zip(base.layers, source.layers):
        for stream in (layer.video, layer.audio):
            for name, value in block.state_dict().items():
                assert torch.equal(stream.state_dict()[name], value), name
    kernel = source.embeddings.patch_embeddings.projection.weight
    assert torch.equal(base.audio_embeddings.patch_embeddings.projection.weight, kernel)
    tubelet = base.video_embeddings.patch_embeddings.projection.weight
    assert torch.equal(tubelet[:, :, 1], kernel)  # the second of two frames
    assert tubelet[:, :, 0].abs().max() == 0
    assert torch.equal(base.video_embeddings.cls_token, source.embeddings.cls_token)
    assert base.audio_embeddings.cls_token.abs().max() == 0  # the original looks for it under a wrong name
    positions = source.embeddings.position_embeddings
    # The same grid per frame, two time steps.
    assert torch.equal(base.video_embeddings.position_embeddings, torch.cat([positions, positions[:, 1:]], dim=1))
    grid = positions[0, 1:].reshape(5, 5, -1)
    audio = base.audio_embeddings.position_embeddings[0, 1:].reshape(3, 2, -1)
    torch.testing.assert_close(audio[1, 0], grid[2, 0])  # corners on corners, the middle on the middle
    torch.testing.assert_close(audio[2, 1], grid[4, 4])
    bottleneck = base.bottleneck[0]
    torch.testing.assert_close(bottleneck[0], positions[0, 0])
    torch.testing.assert_close(bottleneck[1:].reshape(2, 2, -1)[1, 0], grid[4, 0])
    with torch.no_grad():
        assert torch.isfinite(model(torch.rand(1, 4, 3, 40, 40), torch.rand(1, 24, 16)).logits).all()


# Rank pooling by hand: w_i = (2 (n - i + 1) - (n + 1) (H_n - H_{i-1})) / n, n = 4, H = 0, 1, 3/2, 11/6, 25/12.
ARP = [(8 - 5 * 25 / 12) / 4, (6 - 5 * 13 / 12) / 4, (4 - 5 * 7 / 12) / 4, (2 - 5 * 3 / 12) / 4]


@pytest.mark.parametrize(("method", "weights"), [("average_frame", [0.25] * 4), ("average_arp_frame", ARP)])
def test_tubelet_initialisers(vit, method, weights):
    _, source = vit
    fields = {**TINY, "image_size": 40, "tubelet_size": 4}
    base = MBTModel.from_vit(source, MBTConfig(**fields), tubelet_initializer=method)
    kernel = source.embeddings.patch_embeddings.projection.weight
    tubelet = base.video_embeddings.patch_embeddings.projection.weight
    for i, weight in enumerate(weights):
        torch.testing.assert_close(tubelet[:, :, i], kernel * weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_bottleneck_tokens": 5}, "does not fill the 2 x 2 grid"),
        ({"patch_size": 4}, "`patch_size` is"),
        ({"num_hidden_layers": 2}, "must have the same depth"),
        ({"hidden_size": 48}, "`hidden_size` is 48"),
        ({"num_audio_channels": 1}, "`num_audio_channels` is 1"),
    ],
)
def test_from_vit_names_what_does_not_fit(vit, fields, message):
    _, source = vit
    with pytest.raises(ValueError, match=message):
        MBTModel.from_vit(source, MBTConfig(**{**TINY, "image_size": 40, **fields}))


def test_from_vit_refuses_a_pooled_source_for_a_token_model(vit):
    from hf_avfusion.models.mbt.initialization_mbt import mbt_state_from_vit

    _, source = vit
    state = {name: value for name, value in source.state_dict().items() if "cls_token" not in name}
    with pytest.raises(ValueError, match="no CLS token"):
        mbt_state_from_vit(state, MBTConfig(**{**TINY, "image_size": 40}))
