"""The log-mel front end: published formulas, Kaldi and torchaudio as references, order of steps, errors, saving."""

import math

import numpy as np
import pytest
import torch
import torchaudio
from equality import assert_rounding
from safetensors.torch import load_file

from hf_avfusion.processing.feature_extraction_avfusion import PRESETS, AVFusionFeatureExtractor

RATE = 16000
PLAIN = {"spectrogram_length": None, "padding": "none", "mean": 0.0, "std": 1.0, "divisor": 1.0}


def wave(samples: int = RATE, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return 0.1 * noise + 0.3 * torch.sin(2 * math.pi * 440 * torch.arange(samples) / RATE)


def logmel(extractor: AVFusionFeatureExtractor, audio, **kwargs) -> torch.Tensor:
    return extractor(audio, sampling_rate=extractor.sampling_rate, return_tensors="pt", **kwargs).input_features[0]


def mbt_by_hand(samples: np.ndarray) -> np.ndarray:
    """The reconstructed front end in float64 numpy with explicit sums: DFT, triangles in mel, log."""
    frames = np.zeros((math.ceil(len(samples) / 160), 512))
    for i in range(len(frames)):
        piece = samples[160 * i : 160 * i + 400]
        frames[i, : len(piece)] = piece * (0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 400))[: len(piece)]
    turns = np.exp(-2j * np.pi * np.outer(np.arange(512), np.arange(257)) / 512)
    magnitude = np.abs(frames @ turns)

    def mel_of(hertz):
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel_of(0), mel_of(8000), 130)
    bins = mel_of(np.arange(257) * 16000 / 512)
    bank = np.zeros((257, 128))
    for m in range(128):
        left, centre, right = edges[m : m + 3]
        bank[:, m] = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    return (np.log(magnitude @ bank + 1e-6) - 1.102) / 2.762


def test_mbt_equals_the_explicit_formula():
    audio = wave(RATE + 70)
    result = logmel(AVFusionFeatureExtractor(spectrogram_length=None, padding="none"), audio)
    expected = torch.from_numpy(mbt_by_hand(audio.double().numpy()))
    assert result.shape == (101, 128)
    # Bins without any FFT line hold log(1e-6) exactly; elsewhere float32 rounding of a log of small sums.
    assert (result - expected).abs().max() < 1e-3
    assert (result - expected).abs().mean() < 1e-5


def test_mbt_recorded_case(shared):
    case = load_file(shared / "goldens/mbt/logmel_reconstruction.safetensors")
    result = logmel(AVFusionFeatureExtractor(spectrogram_length=100), case["input/waveform"])
    assert (result - case["output/normalised"]).abs().max() < 1e-4


@pytest.mark.parametrize(("length", "name"), [(100, "cropped100"), (160, "padded160")])
def test_ast_recorded_case(shared, length, name):
    case = load_file(shared / "goldens/mmt/ast_fbank.safetensors")
    result = logmel(AVFusionFeatureExtractor.from_preset("ast", spectrogram_length=length), case["input/waveform"])
    assert (result - case[f"output/{name}_normalised"]).abs().max() < 2e-4


LAVISH = {  # overrides of the preset (AVE with Swin-V2), seconds of a clip, clips per file
    "ave_swin": ({}, 1.0, 10),
    "ave_vit": (
        {"num_mel_bins": 128, "hop_length": 160, "spectrogram_length": 102, "mean": -4.1426, "std": 3.2001},
        1.0,
        10,
    ),
    "avqa": ({"hop_length": 160, "mean": -5.385333061218262, "std": 3.5928637981414795}, 1.95, 10),
    "avs_len1": ({"hop_length": 160, "mean": -5.210531711578369, "std": 3.5918314456939697}, 1.0, 5),
}


def test_lavish_recorded_cases(shared):
    case = load_file(shared / "goldens/lavish/audio_frontend.safetensors")
    outputs = [name for name in case if name.startswith("output/")]
    assert len(outputs) == 8
    for name in outputs:
        _, setting, source, index = name.split("/")
        overrides, seconds, clips = LAVISH[setting]
        audio = case[f"input/waveform_{source}"].float() / 32768
        audio = (audio - audio.mean())[
            0
        ]  # the original's mean is that of all channels, its filter bank reads the first
        if len(audio) > (seconds + 0.1) * RATE:
            start = int(np.linspace(0, len(audio) - RATE * (seconds + 0.1), clips)[int(index)])
            audio = audio[start : start + int(seconds * RATE)]
        extractor = AVFusionFeatureExtractor.from_preset("lavish", subtract_mean=False, **overrides)
        assert (logmel(extractor, audio) - case[name]).abs().max() < 5e-4, name


@pytest.mark.parametrize("framing", ["snip", "reflect"])
@pytest.mark.parametrize(("window", "kaldi_window"), [("hann", "hanning"), ("povey", "povey"), ("hamming", "hamming")])
def test_equals_torchaudio_kaldi(framing, window, kaldi_window):
    from torchaudio.compliance.kaldi import fbank

    audio = wave(3 * RATE + 33)
    extractor = AVFusionFeatureExtractor.from_preset(
        "ast", window_type=window, framing=framing, subtract_mean=False, **PLAIN
    )
    expected = fbank(
        audio[None],
        sample_frequency=RATE,
        window_type=kaldi_window,
        num_mel_bins=128,
        snip_edges=framing == "snip",
        htk_compat=True,
        use_energy=False,
    )
    result = logmel(extractor, audio)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("scale", "norm", "power", "win"),
    [("htk", None, 2.0, 512), ("slaney", "slaney", 1.0, 400), ("htk", "slaney", 2.0, 400)],
)
def test_equals_torchaudio_mel_spectrogram(scale, norm, power, win):
    from torchaudio.transforms import MelSpectrogram

    audio = wave(RATE + 7)
    extractor = AVFusionFeatureExtractor(
        window_type="hann",
        win_length=win,
        hop_length=200,
        power=power,
        num_mel_bins=40,
        mel_scale=scale,
        mel_norm=norm,
        framing="center",
        **PLAIN,
    )
    transform = MelSpectrogram(
        RATE,
        n_fft=512,
        win_length=win,
        hop_length=200,
        f_max=8000.0,
        n_mels=40,
        power=power,
        norm=norm,
        mel_scale=scale,
    )
    expected = (transform(audio).T + 1e-6).log()
    assert (logmel(extractor, audio) - expected).abs().max() < 2e-4


def test_one_second_gives_100_frames_and_8_seconds_fill_the_default():
    free = AVFusionFeatureExtractor(spectrogram_length=None, padding="none")
    assert logmel(free, wave(RATE)).shape == (100, 128)
    assert logmel(free, wave(8 * RATE)).shape == (800, 128)
    assert AVFusionFeatureExtractor().seconds == 8.0


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("loudness", [1e-6, 1.0, 1e4])
def test_magnitudes_to_any_power(power, loudness):
    """Magnitudes computed from squares equal those of abs()."""
    frames = loudness * torch.randn(7, 400, generator=torch.Generator().manual_seed(0))
    extractor = AVFusionFeatureExtractor(
        power=power, framing="snip", window_type="rectangular", log_offset=0.0, log_floor=1e-45, spectrogram_length=None,
        hop_length=400, padding="none", mean=0.0, std=1.0,
    )  # fmt: skip
    bank = torchaudio.compliance.kaldi.get_mel_banks(128, 512, 16000.0, 0.0, 8000.0, 100.0, -500.0, 1.0)[0]
    exact = torch.fft.rfft(frames.double(), n=512).abs()[:, :-1].pow(power) @ bank.T.double()
    found = extractor.spectrogram(frames.reshape(-1))
    nonempty = exact > 0  # the lowest bins are narrower than those of the FFT, and empty
    torch.testing.assert_close(found[nonempty], exact.log()[nonempty].float(), rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("name", [*PRESETS, "htk", "povey"])
def test_double_precision_only_rounds_less(name):
    fields = {"htk": {"mel_scale": "htk"}, "povey": {"window_type": "povey", "power": 1.5}}
    preset, changes = ("mbt", fields[name]) if name in fields else (name, {})
    single, double = (
        logmel(AVFusionFeatureExtractor.from_preset(preset, double_precision=double, **changes), wave(3 * RATE))
        for double in (False, True)
    )
    assert single.dtype == double.dtype == torch.float32
    difference = (single - double).abs()
    assert 0 < difference.max() < 1e-3
    assert difference.mean() < 1e-5


def test_log10_offset_and_floor():
    audio = torch.zeros(RATE)
    assert torch.allclose(logmel(AVFusionFeatureExtractor(log="log10", **PLAIN), audio), torch.tensor(-6.0))
    floor = AVFusionFeatureExtractor(log_offset=0.0, log_floor=1e-3, **PLAIN)
    assert torch.allclose(logmel(floor, audio), torch.tensor(math.log(1e-3)))


class TestPadding:
    """3 s of audio padded to 8 s: what each mode pads, with which value, before or after normalising."""

    def test_wrap_repeats_the_waveform(self):
        short = wave(3 * RATE)
        whole = logmel(AVFusionFeatureExtractor(), torch.cat([short, short, short])[: 8 * RATE])
        assert torch.equal(logmel(AVFusionFeatureExtractor(), short), whole)

    def test_wrap_of_a_waveform_much_shorter_than_the_window(self):
        result = logmel(AVFusionFeatureExtractor(), wave(160))  # one hop: every frame but the last two is the same
        assert result.shape == (800, 128)
        assert torch.allclose(result[0], result[500], atol=1e-4)

    def test_waveform_zeros_become_the_log_of_the_offset(self):
        result = logmel(AVFusionFeatureExtractor(padding="waveform"), wave(3 * RATE))
        silence = (math.log(1e-6) - 1.102) / 2.762
        assert torch.allclose(result[300:], torch.tensor(silence), atol=1e-5)
        assert (result[:298] > silence + 0.1).any(dim=1).all()

    def test_spectrogram_rows_are_normalised(self):
        result = logmel(AVFusionFeatureExtractor.from_preset("ast"), wave(3 * RATE))
        assert result.shape == (1024, 128)
        assert torch.allclose(result[298:], torch.tensor(4.2677393 / (2 * 4.5689974)))
        assert_rounding(
            result[:298], logmel(AVFusionFeatureExtractor.from_preset("ast", spectrogram_length=298), wave(3 * RATE))
        )

    def test_normalized_rows_keep_the_value(self):
        result = logmel(AVFusionFeatureExtractor.from_preset("lavish"), wave(RATE))
        assert result.shape == (192, 192)  # 188 rows of 83 samples, and 4 rows of zeros
        assert (result[188:] == 0).all()
        assert (result[187] != 0).any()

    def test_none_returns_fewer_frames(self):
        assert logmel(AVFusionFeatureExtractor(padding="none"), wave(3 * RATE)).shape == (300, 128)


class TestTruncation:
    def test_start_and_center(self):
        audio = wave(10 * RATE)
        every = logmel(AVFusionFeatureExtractor(spectrogram_length=None), audio)
        assert_rounding(logmel(AVFusionFeatureExtractor(truncation="start"), audio), every[:800])
        assert_rounding(logmel(AVFusionFeatureExtractor(truncation="center"), audio), every[100:900])

    def test_error_states_the_lengths(self):
        with pytest.raises(ValueError, match=r"1000 frames, but spectrogram_length is 800.*at most 8 s"):
            logmel(AVFusionFeatureExtractor(truncation="error"), wave(10 * RATE))


def test_means_of_the_waveform_and_of_frames_are_removed():
    loud = wave() + 0.5
    with_mean = AVFusionFeatureExtractor(subtract_mean=True, spectrogram_length=100)
    centred = loud - loud.mean()
    assert_rounding(logmel(with_mean, loud), logmel(AVFusionFeatureExtractor(spectrogram_length=100), centred))
    # Any constant within a frame is removed.
    frames = AVFusionFeatureExtractor(remove_dc_offset=True, framing="snip", **PLAIN)
    assert torch.allclose(logmel(frames, wave()), logmel(frames, loud), atol=1e-2)
    assert not torch.allclose(
        logmel(AVFusionFeatureExtractor(**PLAIN), wave()), logmel(AVFusionFeatureExtractor(**PLAIN), loud), atol=1e-2
    )


def test_dither_needs_and_uses_a_generator():
    extractor = AVFusionFeatureExtractor(dither=1e-3, spectrogram_length=100)

    def draw(seed):
        return logmel(extractor, wave(), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    with pytest.raises(ValueError, match=r"dither=0.001.*generator"):
        logmel(extractor, wave())


def test_all_kinds_of_input_give_the_same():
    extractor = AVFusionFeatureExtractor(spectrogram_length=50)
    audio = wave(8000)
    expected = logmel(extractor, audio)
    assert expected.dtype == torch.float32
    for same in (
        audio.numpy(),
        audio.tolist(),
        audio[None],
        audio.double(),
        [audio],
        [audio.numpy()],
        [audio.tolist()],
    ):
        assert_rounding(logmel(extractor, same), expected)
    batch = extractor([audio, wave(9000, seed=1)], sampling_rate=RATE, return_tensors="pt").input_features
    assert batch.shape == (2, 50, 128)
    assert_rounding(batch[0], expected)  # independent of batch mates
    arrays = extractor([audio, audio], sampling_rate=RATE).input_features
    assert isinstance(arrays, list)
    assert isinstance(arrays[0], np.ndarray)
    assert extractor(audio, sampling_rate=RATE, return_tensors="np").input_features.shape == (1, 50, 128)


def test_the_input_is_not_modified():
    audio = wave()
    before = audio.clone()
    for name in PRESETS:
        logmel(AVFusionFeatureExtractor.from_preset(name), audio)
    assert torch.equal(audio, before)


class TestErrors:
    """One clear error each: the argument, its value and the remedy."""

    @pytest.mark.parametrize(
        ("audio", "message"),
        [
            (torch.tensor([0.1, float("nan")]), r"audio has 1 NaN or infinite values of 2"),
            (np.array([np.inf, 0.0, np.inf]), r"audio has 2 NaN or infinite values of 3"),
            (torch.zeros(0), r"audio is empty"),
            (np.array(0.5), r"audio has shape \(\)"),
            ([], r"audio is an empty list"),
            (np.zeros((2, 400)), r"audio has shape \(2, 400\).*mono.*audio\.mean\(0\)"),
            ([np.zeros(400), np.zeros((2, 400))], r"audio\[1\] has shape \(2, 400\)"),
            (np.zeros(400, dtype=np.int16), r"audio holds integers \(torch\.int16\).*32768"),
            ("clip.wav", r"audio is a str"),
            ([np.zeros(400), None], r"audio\[1\] holds object values"),
        ],
    )
    def test_waveforms(self, audio, message):
        with pytest.raises(ValueError, match=message):
            AVFusionFeatureExtractor()(audio, sampling_rate=RATE)

    def test_wrong_sampling_rate(self):
        with pytest.raises(ValueError, match=r"sampling_rate=44100 Hz.*16000 Hz.*do_resample=True"):
            AVFusionFeatureExtractor()(wave(), sampling_rate=44100)

    def test_resampling_without_a_rate(self):
        with pytest.raises(ValueError, match=r"do_resample=True needs sampling_rate="):
            AVFusionFeatureExtractor(do_resample=True)(wave())

    def test_batch_that_cannot_be_stacked(self):
        extractor = AVFusionFeatureExtractor(padding="none")
        with pytest.raises(ValueError, match=r"100 to 200 frames cannot be stacked"):
            extractor([wave(RATE), wave(2 * RATE)], sampling_rate=RATE, return_tensors="pt")

    @pytest.mark.parametrize("framing", ["snip", "center", "reflect"])
    def test_shorter_than_a_frame(self, framing):
        with pytest.raises(ValueError, match=r"audio has 100 samples"):
            logmel(AVFusionFeatureExtractor(framing=framing, **PLAIN), wave(100))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"window_type": "kaiser"}, r"window_type='kaiser' is not one of 'hamming'"),
            ({"mel_scale": "bark"}, r"mel_scale='bark'"),
            ({"framing": "valid"}, r"framing='valid'"),
            ({"padding": "zeros"}, r"padding='zeros'"),
            ({"n_fft": 256}, r"n_fft=256 must be even and at least win_length=400"),
            ({"fmax": 9000.0}, r"fmax=9000\.0 must satisfy.*8000\.0 Hz"),
            ({"hop_length": 0}, r"hop_length=0"),
            ({"mel_norm": "slaney"}, r"mel_norm='slaney' needs.*got 'kaldi'"),
            ({"std": 0.0}, r"std=0\.0"),
            ({"log_offset": 0.0}, r"log\(0\) is undefined"),
            ({"spectrogram_length": 0}, r"spectrogram_length=0"),
            ({"spectrogram_length": 3.5}, r"spectrogram_length=3\.5 must be None or a whole number"),
            ({"mean": float("nan")}, r"mean=nan must be a finite number"),
            ({"std": "2.7"}, r"std='2\.7' must be a finite number"),
            ({"power": -1.0}, r"power=-1\.0 must be above 0"),
            ({"double_precision": 1}, r"double_precision=1 must be True or False"),
        ],
    )
    def test_fields(self, fields, message):
        with pytest.raises(ValueError, match=message):
            AVFusionFeatureExtractor(**fields)

    def test_unknown_preset(self):
        with pytest.raises(ValueError, match=r"one of mbt, ast, .*got 'clap'"):
            AVFusionFeatureExtractor.from_preset("clap")

    def test_unknown_field_of_a_preset(self):
        with pytest.raises(TypeError, match=r"unknown fields num_mels; the fields are .*num_mel_bins"):
            AVFusionFeatureExtractor.from_preset("ast", num_mels=64)


def test_resampling_if_enabled():
    seconds = torch.arange(44100) / 44100
    high = torch.sin(2 * math.pi * 440 * seconds)
    low = torch.sin(2 * math.pi * 440 * torch.arange(RATE) / RATE)
    extractor = AVFusionFeatureExtractor(spectrogram_length=100)
    for resampled in (
        extractor(high, sampling_rate=44100, do_resample=True, return_tensors="pt"),
        AVFusionFeatureExtractor(spectrogram_length=100, do_resample=True)(
            high, sampling_rate=44100, return_tensors="pt"
        ),
    ):
        loudest = resampled.input_features[0, 5:-5].argmax(dim=1)
        assert torch.equal(loudest, logmel(extractor, low)[5:-5].argmax(dim=1))


def test_defaults_are_the_mbt_preset():
    assert AVFusionFeatureExtractor().to_dict() == AVFusionFeatureExtractor.from_preset("mbt").to_dict()


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_constant_is_saved(tmp_path, name):
    extractor = AVFusionFeatureExtractor.from_preset(name, padding_value=0.25, preemphasis=0.5)
    extractor.save_pretrained(tmp_path)
    again = AVFusionFeatureExtractor.from_pretrained(tmp_path)
    saved = again.to_dict()
    assert saved == extractor.to_dict()
    assert set(PRESETS[name]) <= set(saved)
    assert (saved["padding_value"], saved["preemphasis"]) == (0.25, 0.5)
    assert torch.equal(logmel(again, wave()), logmel(extractor, wave()))
