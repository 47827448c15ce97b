"""VGGish beside LAVISH's streams: from a waveform to the head, weights, adapters, and the ways that carry its input."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from checkers.lavish_parts.vggish import group
from equality import assert_rounding, assert_same_bits
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel, get_peft_model
from rendering import render_clip
from safetensors.numpy import load_file
from tiny_lavish import (
    ADAPTER,
    VGGISH,
    perturb,
    tiny_config,
    tiny_inputs,
    tiny_model,
    tiny_questions,
    tiny_segmentation,
)
from transformers import AutoModelForVideoClassification, AutoProcessor, pipeline
from travellers import lavish_processor, lavish_vggish_processor, traveller

from hf_avfusion import LavishConfig
from hf_avfusion.adapters import build_in, take_out
from hf_avfusion.data.augmentation import SpecAugment
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.views import predict_modalities, view_logits
from hf_avfusion.media.reader import MediaError
from hf_avfusion.media.resampling import resample
from hf_avfusion.model_card import CardDetails, build_card
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification
from hf_avfusion.models.lavish.modeling_lavish_heads import LavishForQuestionAnswering, LavishForSegmentation
from hf_avfusion.models.lavish.processing_lavish import LavishProcessor, frame_processor
from hf_avfusion.models.shared.vggish import VGGish
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.vggish_examples import vggish_examples

TESTS = Path(__file__).resolve().parents[2]
SMALL = TESTS / "goldens" / "lavish" / "vggish_small"
FRONT_END = TESTS.parent.parent / "shared" / "goldens" / "lavish" / "vggish_frontend.safetensors"
RATE = 16_000
SIZE = VGGISH["vggish_feature_size"]


def model(**fields) -> LavishForAudioVisualClassification:
    """In evaluation mode, with weights of VGGish that give features well away from zero."""
    made = tiny_model("vit", **{**VGGISH, "adapter": ADAPTER, **fields})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.lavish.vggish.parameters():
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return made


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Two clips of 2 s with sound, in one file stereo at 44.1 kHz, and one without."""
    folder = tmp_path_factory.mktemp("clips")
    options = {"seconds": 2.0, "size": (32, 24)}
    render_clip(folder / "chirp.mp4", channels=2, **options)
    render_clip(
        folder / "noise.mkv",
        audio=noise(2.0, 44_100)[None],
        container="matroska",
        audio_codec="pcm_s16le",
        sampling_rate=44_100,
        **options,
    )
    render_clip(folder / "silent.mp4", audio=None, **options)
    return [str(folder / name) for name in ("chirp.mp4", "noise.mkv", "silent.mp4")]


# -------------------------------------------------------------------------------------------------------------- published


def recorded_model(**fields) -> tuple[LavishForAudioVisualClassification, dict[str, np.ndarray], dict]:
    """A model whose VGGish has the weights of the recorded case, three segments, and the case."""
    record = json.loads(SMALL.with_suffix(".json").read_text(encoding="utf-8"))
    tensors = load_file(SMALL.with_suffix(".safetensors"))
    sizes = {"vggish_channels": record["channels"], "vggish_hidden_size": record["hidden"]}
    made = tiny_model(
        "vit", **{**VGGISH, **sizes, "vggish_feature_size": record["embedding"], "num_segments": 3, **fields}
    )
    state = {name: torch.from_numpy(value) for name, value in group(tensors, "param/").items()}
    if made.config.vggish_postprocess:
        pca = {name: torch.from_numpy(tensors[f"input/{name}"]).float() for name in ("pca_eigen_vectors", "pca_means")}
        state |= {
            "pproc.pca_eigen_vectors": pca["pca_eigen_vectors"],
            "pproc.pca_means": pca["pca_means"].reshape(-1, 1),
        }
    made.lavish.vggish.load_state_dict(state)
    return made, tensors, record


@pytest.mark.parametrize("postprocess", [False, True])
@torch.no_grad()
def test_recorded_features_stand_after_those_of_the_streams(postprocess):
    made, tensors, _ = recorded_model(vggish_postprocess=postprocess)
    inputs = tiny_inputs(made, batch=1)
    inputs["vggish_features"] = torch.from_numpy(tensors["input/examples"]).float()[None]
    pooled = made.lavish(**inputs).pooler_output[0]
    streams, features = pooled.split([2 * made.config.hidden_size, 128], dim=1)
    expected = torch.from_numpy(tensors["output/postprocessed" if postprocess else "output/embedding"]).float()
    assert (features - expected).abs().max() <= (0 if postprocess else 1e-5 * expected.abs().max())
    assert_same_bits(made(**inputs).logits[0], made.classifier(pooled))
    plain = tiny_model("vit", num_segments=3)
    plain.lavish.load_state_dict(made.lavish.state_dict(), strict=False)
    del inputs["vggish_features"]
    assert_same_bits(streams, plain.lavish(**inputs).pooler_output[0])


@pytest.mark.skipif(not FRONT_END.is_file(), reason="no folder ../shared beside the repository, which has the case")
@torch.no_grad()
def test_from_the_waveform_to_the_features_as_recorded():
    """The segments are the two examples of the recorded clip: 15,600 samples from 0 and from 15,360 on."""
    recorded = load_file(FRONT_END)
    waveform = recorded["input/mono"][0].astype(np.float32) / 32768
    margin = (len(waveform) - 15_360 - 15_600) / RATE
    audio = AVFusionFeatureExtractor.from_preset(
        "lavish_ave_vit", num_mel_bins=40, spectrogram_length=26, hop_length=600
    )
    window = {"num_segments": 2, "segment_seconds": 0.975, "segment_margin": margin}
    processor = LavishProcessor(frame_processor(32), audio, window=window, vggish=True)
    inputs = processor(audio=waveform, sampling_rate=RATE, return_tensors="pt")
    reference = torch.from_numpy(recorded["output/mono"])
    assert (inputs["vggish_features"][0] - reference).abs().max() <= 1e-6 * reference.abs().max()
    made, tensors, _ = recorded_model(num_segments=2)
    published = VGGish.from_published(group(tensors, "param/")).double()
    expected = published(reference.double())
    found = made.lavish(**inputs).pooler_output[0, :, -128:]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_fresh_model_has_the_published_sizes():
    with torch.device("meta"):
        made = LavishForAudioVisualClassification(tiny_config("vit", vggish=True, classifier_hidden_size=None))
    assert sum(each.numel() for each in made.lavish.vggish.parameters()) == 72_141_184
    assert made.classifier.in_features == 2 * 24 + 128


# ------------------------------------------------------------------------------------------------------------------ model


@torch.no_grad()
def test_without_sound_there_are_no_features():
    made = model()
    inputs = tiny_inputs(made, batch=2)
    inputs["vggish_features"][1] = inputs["input_features"][1] = float("nan")
    mask = torch.tensor([[True, True], [True, False]])
    pooled = made.lavish(**inputs, modality_mask=mask).pooler_output
    assert pooled[0, :, -SIZE:].any()
    assert not pooled[1, :, -SIZE:].any()
    alone = made(pixel_values=inputs["pixel_values"][1:]).logits
    torch.testing.assert_close(made(**inputs, modality_mask=mask).logits[1:], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_sound_alone_is_heard():
    made = model(modalities=("audio",))
    inputs = tiny_inputs(made)
    assert set(inputs) == {"input_features", "vggish_features"}
    other = {**inputs, "vggish_features": inputs["vggish_features"].flip(0)}
    assert made(**inputs).logits.shape == (2, 2, 5)
    assert not torch.allclose(made(**inputs).logits, made(**other).logits, atol=1e-3)


def test_is_frozen_with_the_backbone(tmp_path):
    made = model()
    made.save_pretrained(tmp_path)
    for each in (made, AutoModelForVideoClassification.from_pretrained(tmp_path)):
        assert not any(parameter.requires_grad for parameter in each.lavish.vggish.parameters())
        assert each.classifier.weight.requires_grad
    assert_rounding(each(**tiny_inputs(made)).logits, made(**tiny_inputs(made)).logits)
    trained = model(freeze_backbone=False)
    trained(**tiny_inputs(trained), labels=torch.tensor([[0, 1], [2, 3]])).loss.backward()
    assert all(parameter.grad.any() for parameter in trained.lavish.vggish.features.parameters())
    rounded = model(freeze_backbone=False, vggish_postprocess=True)
    assert not any(parameter.requires_grad for parameter in rounded.lavish.vggish.parameters())
    assert rounded.config.report_settings["vggish"] is True
    assert "vggish" not in tiny_config("vit").report_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vggish_features": None}, "`input_features` was given without `vggish_features`"),
        ({"input_features": None}, "`vggish_features` was given without `input_features`"),
        (
            {"vggish_features": torch.zeros(2, 2, 96, 40)},
            r"must be float \[batch, segments, 96, 64\] = \[2, 2, 96, 64\], got",
        ),
        ({"vggish_features": torch.zeros(2, 96, 64)}, r"torch.float32 \[2, 96, 64\]"),
        ({"vggish_features": torch.zeros(2, 2, 96, 64, dtype=torch.uint8)}, r"torch.uint8 \[2, 2, 96, 64\]"),
        ({"vggish_features": np.zeros((2, 2, 96, 64))}, "is a ndarray, but the model takes torch tensors"),
    ],
)
def test_wrong_inputs_are_refused(changes, message):
    made = model()
    with pytest.raises((ValueError, TypeError), match=message):
        made(**{**tiny_inputs(made), **changes})


def test_a_model_without_it_refuses_its_input():
    inputs = tiny_inputs(model())
    with pytest.raises(ValueError, match="`vggish_features` was given, but this model has no VGGish"):
        tiny_model("vit")(**inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classifier_hidden_size": 6}, "`vggish` has a head of one linear layer, got classifier_hidden_size=6"),
        (
            {"modalities": ("video",)},
            r"`vggish` needs `num_segments` and the modality audio, .*modalities=\('video',\)",
        ),
        ({"vggish_channels": (2, 3)}, r"`vggish_channels` must be the widths of 6 convolutions, got \(2, 3\)"),
        ({"vggish_hidden_size": 0}, "vggish_hidden_size"),
        ({"vggish_channels": (2**21,) * 6}, "vggish_channels"),
        ({"vggish_channels": (2**20,) * 6}, "`num_segments`, `vggish_channels` together give"),
        ({"vggish": False, "vggish_postprocess": True}, "`vggish_postprocess` needs `vggish`"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config("vit", **{**VGGISH, **fields})


def test_clips_without_segments_and_other_heads_refuse_it():
    with pytest.raises((ValueError, StrictDataclassError), match="`vggish` needs `num_segments`"):
        tiny_config("videomae", **VGGISH)
    for kind, config in (
        (LavishForSegmentation, tiny_segmentation(**VGGISH)),
        (LavishForQuestionAnswering, tiny_questions(**VGGISH)),
    ):
        with pytest.raises(ValueError, match=f"`vggish` is an option of .*, but this is a {kind.__name__}"):
            kind(config)


# ---------------------------------------------------------------------------------------------------------------- weights


def published_file(path: Path, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in model().lavish.vggish.state_dict().items()}
    torch.save({**state, **more}, path)
    return state


PCA = {"pca_eigen_vectors": torch.randn(SIZE, SIZE), "pca_means": torch.randn(SIZE)}


def test_starts_from_the_published_file(tmp_path):
    file = tmp_path / "vggish.pth"
    state = published_file(file)
    sizes = {name: value for name, value in VGGISH.items() if name.startswith("vggish_")}
    fields = {"num_labels": 5, "num_segments": 2, "spectrogram_length": 24, "num_mel_bins": 40}
    backbone = tiny_model("vit").lavish.backbone
    made = LavishForAudioVisualClassification.from_vggish(file, backbone, **sizes, **fields)
    assert made.config.vggish
    assert_same_bits(made.lavish.vggish.state_dict(), state)
    assert_same_bits(made.lavish.backbone.state_dict(), backbone.state_dict())
    assert not any(parameter.requires_grad for parameter in made.lavish.vggish.parameters())
    other = LavishForAudioVisualClassification.from_vggish(
        file, pca=PCA, vggish_postprocess=True, backbone_config=backbone.config, **sizes, **fields
    )
    assert_same_bits(other.lavish.vggish.pproc.pca_eigen_vectors, PCA["pca_eigen_vectors"])
    torch.save(PCA, tmp_path / "pca.pth")
    whole = {f"pproc.{name}": value for name, value in PCA.items()}
    published_file(tmp_path / "whole.pth", **whole)
    for given in ({"vggish": file, "pca": tmp_path / "pca.pth"}, {"vggish": tmp_path / "whole.pth"}):
        fresh = model(vggish_postprocess=True)
        fresh.load_vggish(**given)
        assert_same_bits(fresh.lavish.vggish.state_dict(), other.lavish.vggish.state_dict())


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "vggish.pth"
    state = published_file(file)
    with pytest.raises(ValueError, match=r"vggish\.pth: this model has no VGGish. Set `vggish=True`"):
        tiny_model("vit").load_vggish(file)
    with pytest.raises(ValueError, match=r"no PCA parameters were given"):
        model(vggish_postprocess=True).load_vggish(file)
    with pytest.raises(ValueError, match=r"the model does not post-process features"):
        model().load_vggish(file, PCA)
    with pytest.raises(
        ValueError, match=r"embeddings\.0\.weight has shape .*, but the model has .*Set `vggish_channels`"
    ):
        model(vggish_hidden_size=9).load_vggish(file)
    with pytest.raises(ValueError, match=r"none\.pth: no such file"):
        model().load_vggish(tmp_path / "none.pth")
    torch.save({name: value for name, value in state.items() if name != "features.0.bias"}, file)
    made = model()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(ValueError, match=r"vggish\.pth: the state dict lacks features\.0\.bias"):
        made.load_vggish(file)
    assert_same_bits(made.state_dict(), before)


def test_an_adapter_leaves_it_to_the_base_model(tmp_path):
    base = model(adapter=None)
    base.save_pretrained(tmp_path / "base")
    inputs = tiny_inputs(base)
    config = LavishConfig(num_tokens=2, reduction=4, modules_to_save=["classifier"])
    adapted = get_peft_model(AutoModelForVideoClassification.from_pretrained(tmp_path / "base"), config).eval()
    assert_rounding(adapted(**inputs).logits, base(**inputs).logits)
    perturb(adapted, ("lavish_", "modules_to_save"))
    expected = adapted(**inputs).logits
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any(".vggish." in name for name in trained)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(
        AutoModelForVideoClassification.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    assert_rounding(loaded.eval()(**inputs).logits, expected)
    built = build_in(adapted)
    built.save_pretrained(tmp_path / "built")
    assert_same_bits(built(**inputs).logits, expected)
    assert_rounding(AutoModelForVideoClassification.from_pretrained(tmp_path / "built")(**inputs).logits, expected)
    assert_same_bits(take_out(built, modules_to_save=["classifier"]).eval()(**inputs).logits, expected)


# -------------------------------------------------------------------------------------------------------------- processor


def test_a_file_its_arrays_and_a_stream_give_the_same(clips):
    processor = lavish_vggish_processor()
    assert processor.model_input_names[-1] == "vggish_features"
    config = traveller("lavish-vggish")[0].config
    assert dict(processor.input_axes) == config.input_axes
    file = processor(videos=clips[0], return_tensors="pt")
    loaded = processor.load_clip(clips[0])
    for number, clip in enumerate(loaded):
        waveform = processor._mono(clip)
        assert torch.equal(file["vggish_features"][0, number], vggish_examples(waveform, RATE)[0])
    whole = noise(2.0)
    arrays = processor(audio=whole, sampling_rate=RATE, return_tensors="pt")
    for number, start in enumerate((0, 32_000 - 17_600)):
        expected = vggish_examples(torch.from_numpy(whole[start : start + RATE]), RATE)[0]
        assert torch.equal(arrays["vggish_features"][0, number], expected)
    assert np.array_equal(np.stack(processor(videos=clips[0])["vggish_features"]), file["vggish_features"].numpy())
    both = processor(videos=clips, return_tensors="pt")
    assert both["modality_mask"].tolist() == [[True, True], [True, True], [True, False]]
    assert both["vggish_features"].shape == (3, 2, 96, 64)
    assert not both["vggish_features"][2].any()
    assert "vggish_features" not in processor(videos=clips[2], return_tensors="pt")
    rows = [{"clip_id": clip, "video": clip} for clip in clips]
    samples = list(ClipStream(rows, ClipTransform(processor, labels=())))
    assert torch.equal(samples[0]["vggish_features"], file["vggish_features"][0])
    batch = AVCollator()(samples)
    for name in ("pixel_values", "input_features", "vggish_features", "modality_mask"):
        assert torch.equal(batch[name], both[name])


def test_travels_with_the_processor(tmp_path, clips):
    processor = lavish_vggish_processor()
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert_same_bits(
        dict(loaded(videos=clips[0], return_tensors="pt")), dict(processor(videos=clips[0], return_tensors="pt"))
    )
    without = AutoProcessor.from_pretrained(tmp_path, vggish=False)
    assert "vggish_features" not in without(videos=clips[0], return_tensors="pt")
    assert "vggish_features" not in lavish_processor().model_input_names
    card = str(build_card(*traveller("lavish-vggish"), CardDetails(), "org/lavish"))
    assert re.search(r"\| `vggish_features` \| the first 0.975 s of each segment, 16000 Hz mono", card)


def test_hears_what_a_faster_front_end_hears():
    """Each segment at the rate of the feature extractor is resampled to VGGish's."""
    audio = AVFusionFeatureExtractor.from_preset(
        "lavish_ave_vit", sampling_rate=32_000, num_mel_bins=16, spectrogram_length=32
    )
    processor = LavishProcessor(frame_processor(16), audio, num_segments=2, vggish=True)
    sound = noise(2.0, 32_000)
    found = processor(audio=sound, sampling_rate=32_000, return_tensors="pt")["vggish_features"][0]
    for number, start in enumerate((0, 64_000 - 35_200)):
        segment = resample(torch.from_numpy(sound[start : start + 32_000]), 32_000, RATE)
        assert torch.equal(found[number], vggish_examples(segment, RATE)[0])


@pytest.mark.parametrize("seconds", [0.97, 0.5, 0.01])
def test_too_short_sound_is_refused_and_skipped(seconds):
    processor = lavish_vggish_processor()
    clip = render_clip(
        seconds=seconds, audio="chirp", container="matroska", audio_codec="pcm_s16le", sampling_rate=RATE
    )
    row = {"clip_id": "short", "video": {"bytes": clip, "path": None}}
    with pytest.raises(
        MediaError, match=rf"has {seconds:.2f}\d s of audio, but VGGish needs 0.975 s: leave the clip out"
    ):
        processor(videos=clip)
    stream = ClipStream([row], ClipTransform(processor, labels=()))
    assert list(stream) == []
    assert stream.skipped == 1
    with pytest.raises(ValueError, match=r"s of audio, but VGGish needs 0\.975 s"):
        processor(audio=noise(seconds), sampling_rate=RATE)


def test_a_clip_of_one_example_is_heard_whole_in_each_segment():
    found = lavish_vggish_processor()(audio=noise(0.975), sampling_rate=RATE, return_tensors="pt")["vggish_features"][0]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], vggish_examples(torch.from_numpy(noise(0.975)), RATE)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_segments": None, "segment_margin": 0.1}, "num_segments is None: set num_segments, or leave vggish out"),
        ({"segment_seconds": 0.9}, r"segment_seconds=0.9 .*must be at least 0.975 and both together less than 1.935"),
        ({"segment_seconds": 1.95}, "segment_seconds=1.95"),
        ({"segment_margin": 0.95}, "segment_margin=0.95"),
        ({"vggish": "yes"}, "vggish must be True or False, got 'yes'"),
    ],
)
def test_processors_that_cannot_be_are_refused(fields, message):
    audio = AVFusionFeatureExtractor.from_preset("lavish_ave_vit")
    with pytest.raises(ValueError, match=message):
        LavishProcessor(frame_processor(16), audio, **{"vggish": True, **fields})


def test_a_slower_front_end_is_refused():
    audio = AVFusionFeatureExtractor.from_preset("lavish_ave_vit", sampling_rate=8000)
    with pytest.raises(ValueError, match=r"sampling_rate=8000 Hz, but VGGish needs 16000 Hz"):
        LavishProcessor(frame_processor(16), audio, vggish=True)


# ------------------------------------------------------------------------------------------------------- carried features


def test_batches_mix_it_with_the_sound():
    """It gets the audio's weight, and no augmentation of spectrograms."""
    rows = torch.arange(2.0).view(2, 1, 1, 1)
    samples = [
        {"pixel_values": row, "input_features": row, "vggish_features": row, "labels": torch.tensor(n)}
        for n, row in enumerate(rows)
    ]
    mixed = AVCollator(mixup_alpha=0.5, mixup_per_modality=True, num_labels=2, seed=3)(samples)
    assert torch.equal(mixed["vggish_features"], mixed["input_features"])
    assert not torch.equal(mixed["vggish_features"], mixed["pixel_values"])
    augment = AVCollator(spec_augment=SpecAugment(), time_shift=True)
    long = [{"input_features": torch.rand(2, 40, 16), "vggish_features": torch.rand(2, 96, 64)} for _ in range(2)]
    assert torch.equal(augment(long)["vggish_features"], torch.stack([each["vggish_features"] for each in long]))
    missing = AVCollator()([samples[0], {"pixel_values": rows[1], "labels": torch.tensor(1)}])
    assert missing["modality_mask"].tolist() == [[True, True], [True, False]]
    assert not missing["vggish_features"][1].any()
    with pytest.raises(
        ValueError, match=r"vggish_features of one batch must be in all samples .* not in clips 1: use one processor"
    ):
        AVCollator()([samples[0], {name: samples[1][name] for name in ("pixel_values", "input_features", "labels")}])


@torch.no_grad()
def test_views_and_single_modalities_carry_it(clips):
    its_model, processor = traveller("lavish-vggish")
    rows = [{"clip_id": clip, "video": clip} for clip in clips]
    found = predict_modalities(its_model, ClipStream(rows, ClipTransform(processor, labels=())), batch_size=3)
    inputs = processor(videos=clips, return_tensors="pt")
    torch.testing.assert_close(found["av"].logits, its_model(**inputs).logits)
    assert found["a"].missing_modality == 1
    sound = {name: inputs[name][:2] for name in ("input_features", "vggish_features")}
    torch.testing.assert_close(found["a"].logits, its_model(**sound).logits)
    torch.testing.assert_close(found["v"].logits, its_model(pixel_values=inputs["pixel_values"]).logits)
    views = {name: values.unflatten(0, (1, 3)) for name, values in inputs.items() if name != "modality_mask"}
    torch.testing.assert_close(
        view_logits(its_model, views, views=3)[0],
        its_model(**{name: values[0] for name, values in views.items()}).logits,
    )


@torch.no_grad()
def test_pipelines_carry_it(clips):
    its_model, processor = traveller("lavish-vggish")
    parts = {"model": its_model, "processor": processor}
    events = pipeline("audio-visual-event-localization", **parts)
    assert len(events(clips)) == 3
    scores = pipeline("audio-visual-classification", **parts)
    answers = scores(clips, top_k=None, batch_size=3, return_modalities=True)
    for clip, answer in zip(clips, answers):
        inputs = processor(videos=clip, return_tensors="pt")
        sound = {name: values for name, values in inputs.items() if name != "pixel_values"}
        for key, given in (("both", inputs), ("audio", sound)):
            if not given:
                assert answer[key] is None
                continue
            expected = its_model(**given).logits[0].softmax(dim=-1)
            found = [max(label["score"] for label in segment["labels"]) for segment in answer[key]]
            assert found == pytest.approx(expected.amax(dim=-1).tolist(), abs=1e-5)
