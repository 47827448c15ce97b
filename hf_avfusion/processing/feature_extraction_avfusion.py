"""The log-mel front end of all architectures. Every constant is a saved field, and published settings are presets.

Steps, with the fields that control each:

    1. checks, resampling (`do_resample`), subtraction of the waveform's mean (`subtract_mean`)
    2. a short waveform is repeated (`padding="wrap"`) or gets zeros (`"waveform"`) up to `spectrogram_length` frames
    3. framing (`win_length`, `hop_length`, `framing`); per frame: `dither`, subtraction of its mean (`remove_dc_offset`),
       `preemphasis`, `window_type`
    4. FFT of `n_fft` points, |X|^`power`, mel bank (`num_mel_bins`, `mel_scale`, `mel_norm`, `fmin`, `fmax`)
    5. log (`log`) of max(mel + `log_offset`, `log_floor`); frames beyond the length are cut (`truncation`)
    6. a short log-mel gets rows of `padding_value` (`padding="spectrogram"`)
    7. (x - `mean`) / (`divisor` * `std`)
    8. a short log-mel gets rows of `padding_value` (`padding="normalized"`)

Steps 3 to 5 are those of Kaldi's filter banks: with Kaldi's constants the result equals torchaudio.compliance.kaldi.fbank.
`double_precision` computes steps 1 to 8 in float64. Windows and mel banks are cached per set of constants.
"""

import inspect
import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import AudioKwargs
from transformers.utils import TensorType, logging

from ..media.limits import check_bytes, check_sizes
from ..media.resampling import check_rate, resample
from ..media.tracks import MAX_SAMPLE
from .array_inputs import native, waveforms_of
from .audio_presets import PRESETS
from .spelling import check_spelling

logger = logging.get_logger(__name__)

LOUDEST = 16.0  # of a waveform in [-1, 1]; decoders and augmentation exceed 1, but not this
MAX_FFT = 2**16  # points; published front ends have at most 2,048
MIN_RATE = 100  # Hz of the features; the filter from 767,999 Hz to 1 Hz takes 970 MiB, that to 100 Hz 45 MiB

CHOICES: dict[str, tuple[str | None, ...]] = {
    "window_type": ("hamming", "hann", "povey", "blackman", "rectangular"),
    "mel_scale": ("kaldi", "htk", "slaney"),
    "mel_norm": (None, "slaney"),
    "log": ("ln", "log10"),
    "framing": ("pad_end", "snip", "reflect", "center"),
    "padding": ("wrap", "waveform", "spectrogram", "normalized", "none"),
    "truncation": ("start", "center", "error"),
}


_NUMBERS = ("power", "fmin", "log_offset", "preemphasis", "dither", "padding_value", "mean", "std", "divisor")
_OPTIONAL_NUMBERS = ("fmax", "log_floor")


class AVFusionAudioKwargs(AudioKwargs, total=False):
    """`AudioKwargs` and: do_resample (bool): resample a waveform of another `sampling_rate` instead of raising."""

    do_resample: bool | None


@lru_cache(maxsize=16)
def _window(kind: str, length: int, periodic: bool, dtype: torch.dtype) -> torch.Tensor:
    if kind == "rectangular":
        return torch.ones(length, dtype=dtype)
    if kind == "povey":  # Kaldi's own: Hann to the power of 0.85
        return torch.hann_window(length, periodic=periodic, dtype=dtype).pow(0.85)
    make = {"hamming": torch.hamming_window, "hann": torch.hann_window, "blackman": torch.blackman_window}[kind]
    return make(length, periodic=periodic, dtype=dtype)


def _kaldi_mel_bank_float64(bins: int, n_fft: int, sampling_rate: int, fmin: float, fmax: float) -> torch.Tensor:
    """torchaudio's Kaldi bank [n_fft // 2 + 1, bins] in float64; in float32 its small weights are off by up to 4e-4."""

    def mel(hertz: torch.Tensor) -> torch.Tensor:
        return 1127 * torch.log1p(hertz / 700)

    low, high = mel(torch.tensor([fmin, fmax], dtype=torch.float64)).tolist()
    edges = low + (high - low) / (bins + 1) * torch.arange(bins + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    lines = mel(torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sampling_rate / n_fft)[:, None]
    bank = torch.minimum((lines - left) / (centre - left), (right - lines) / (right - centre)).clamp_min(0)
    bank[[0, -1]] = 0  # no weight for the constant part and, as in Kaldi, for the Nyquist frequency
    return bank


@lru_cache(maxsize=16)
def _mel_bank(
    scale: str,
    norm: str | None,
    bins: int,
    n_fft: int,
    sampling_rate: int,
    fmin: float,
    fmax: float,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Weights [n_fft // 2 + 1, bins]. Triangles are linear in mel for "kaldi", linear in Hz for the others."""
    if dtype == torch.float64 and scale == "kaldi":
        return _kaldi_mel_bank_float64(bins, n_fft, sampling_rate, fmin, fmax)
    if dtype == torch.float64:
        return _mel_bank(scale, norm, bins, n_fft, sampling_rate, fmin, fmax).double()
    if scale == "kaldi":
        from torchaudio.compliance.kaldi import get_mel_banks

        bank, _ = get_mel_banks(bins, n_fft, float(sampling_rate), fmin, fmax, 100.0, -500.0, 1.0)
        return torch.nn.functional.pad(bank, (0, 1)).T.contiguous()  # Kaldi leaves out the Nyquist bin
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # empty low bins, which the published settings have
        return melscale_fbanks(n_fft // 2 + 1, fmin, fmax, bins, sampling_rate, norm, scale)


class AVFusionFeatureExtractor(SequenceFeatureExtractor):
    """Converts mono waveforms to log-mel spectrograms [time, mel]. The defaults are MBT's front end.

    Args:
        sampling_rate (int): required sampling rate of the waveform in Hz.
        window_type (str): "hamming", "hann", "povey", "blackman" or "rectangular".
        window_periodic (bool): periodic (FFT) instead of symmetric window.
        win_length, hop_length, n_fft (int): samples; n_fft >= win_length, frames are zero-padded to it at their end.
        power (float): exponent of the magnitude: 1.0 magnitude, 2.0 power.
        num_mel_bins (int): number of mel bins.
        mel_scale (str): "kaldi" (1127 ln(1 + f/700), triangles linear in mel), "htk" (the same scale, triangles linear
            in Hz) or "slaney".
        mel_norm (str | None): "slaney" divides each triangle by its width in Hz (not with "kaldi").
        fmin, fmax (float): edges of the bank in Hz; fmax None is the Nyquist frequency.
        log (str): "ln" or "log10".
        log_offset (float), log_floor (float | None): log(max(mel + log_offset, log_floor)).
        preemphasis (float): coefficient of the per-frame pre-emphasis, 0 for none.
        remove_dc_offset (bool): subtract the mean of every frame.
        dither (float): standard deviation of noise added to every frame; needs `generator` in the call.
        subtract_mean (bool): subtract the mean of the whole waveform first.
        framing (str): "pad_end" (frame i starts at i * hop, zeros after the end: ceil(samples / hop) frames), "snip"
            (whole frames only: 1 + (samples - win) // hop), "reflect" (Kaldi with snip_edges=False) or "center" (as
            torch.stft: frame i is centred at i * hop, n_fft // 2 samples mirrored at the edges: 1 + samples // hop).
        spectrogram_length (int | None): frames to return; None returns all frames of the waveform.
        padding (str): how fewer frames are extended: "wrap" repeats the waveform cyclically, "waveform" appends zero samples,
            "spectrogram" appends rows of `padding_value` before normalising, "normalized" appends them after it, "none" returns
            fewer frames.
        padding_value (float): value of appended rows.
        truncation (str): how more frames are cut: "start" keeps the first frames, "center" the middle ones (both
            with a warning), "error" raises.
        mean, std, divisor (float): output = (x - mean) / (divisor * std).
        double_precision (bool): compute in float64 and round the result to float32, where the original does so. In float32 a
            quiet bin beside a loud one is off by up to 1e-3 after the log. Takes twice the memory.
        do_resample (bool): resample waveforms of another sampling rate (windowed sinc, see `media.resampling`)
            instead of raising.
    """

    model_input_names = ["input_features"]
    valid_kwargs = AVFusionAudioKwargs

    def __init__(
        self,
        sampling_rate: int = 16000,
        window_type: str = "hamming",
        window_periodic: bool = True,
        win_length: int = 400,
        hop_length: int = 160,
        n_fft: int = 512,
        power: float = 1.0,
        num_mel_bins: int = 128,
        mel_scale: str = "kaldi",
        mel_norm: str | None = None,
        fmin: float = 0.0,
        fmax: float | None = 8000.0,
        log: str = "ln",
        log_offset: float = 1e-6,
        log_floor: float | None = None,
        preemphasis: float = 0.0,
        remove_dc_offset: bool = False,
        dither: float = 0.0,
        subtract_mean: bool = False,
        framing: str = "pad_end",
        spectrogram_length: int | None = 800,
        padding: str = "wrap",
        padding_value: float = 0.0,
        truncation: str = "center",
        mean: float = 1.102,
        std: float = 2.762,
        divisor: float = 1.0,
        double_precision: bool = False,
        do_resample: bool = False,
        **kwargs,
    ):
        check_spelling(type(self).__name__, kwargs, inspect.signature(AVFusionFeatureExtractor.__init__).parameters)
        kwargs.pop("feature_size", None)  # the base class's name for num_mel_bins
        kwargs.setdefault("return_attention_mask", False)  # for `pad`; spectrograms have one length
        super().__init__(feature_size=num_mel_bins, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.window_type = window_type  # transformers does not save an attribute named `window`
        self.window_periodic = window_periodic
        self.win_length = win_length
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.power = power
        self.num_mel_bins = num_mel_bins
        self.mel_scale = mel_scale
        self.mel_norm = mel_norm
        self.fmin = fmin
        self.fmax = fmax
        self.log = log
        self.log_offset = log_offset
        self.log_floor = log_floor
        self.preemphasis = preemphasis
        self.remove_dc_offset = remove_dc_offset
        self.dither = dither
        self.subtract_mean = subtract_mean
        self.framing = framing
        self.spectrogram_length = spectrogram_length
        self.padding = padding
        self.truncation = truncation
        self.mean = mean
        self.std = std
        self.divisor = divisor
        self.double_precision = double_precision
        self.do_resample = do_resample
        self._check_fields()

    def _check_fields(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
        for name in ("sampling_rate", "win_length", "hop_length", "n_fft", "num_mel_bins"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1")
        lengths = ("sampling_rate", "win_length", "hop_length", "n_fft", "num_mel_bins", "spectrogram_length")
        check_sizes({name: getattr(self, name) for name in lengths})
        length = self.spectrogram_length
        if length is not None and (not isinstance(length, int) or length < 1):
            raise ValueError(f"spectrogram_length={length!r} must be None or a whole number of at least 1 frame")
        for name in (*_NUMBERS, *_OPTIONAL_NUMBERS):
            value = getattr(self, name)
            if value is None and name in _OPTIONAL_NUMBERS:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name}={value!r} must be a finite number")
        if self.power <= 0 or self.dither < 0:
            raise ValueError(f"power={self.power} must be above 0, and dither={self.dither} at least 0")
        check_rate(self.sampling_rate, "sampling_rate")
        if self.sampling_rate < MIN_RATE:
            raise ValueError(f"sampling_rate={self.sampling_rate} Hz must be at least {MIN_RATE} Hz")
        for name in ("window_periodic", "double_precision"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False")
        if self.mel_scale == "kaldi" and self.num_mel_bins < 3:
            raise ValueError(f"num_mel_bins={self.num_mel_bins}: a Kaldi mel bank has at least 3 bins")
        if not 1e-6 <= abs(self.std * self.divisor) <= 1e6 or abs(self.mean) > 1e6:
            raise ValueError(
                f"mean={self.mean}, std={self.std} and divisor={self.divisor}: the mean must lie within 1e6, and std * divisor "
                "within 1e-6 to 1e6"
            )
        if self.power > 8 or self.log_offset > 1e6:
            raise ValueError(f"power={self.power} must be at most 8, and log_offset={self.log_offset} at most 1e6")
        padded = self._samples_for(length) if length is not None and self.padding in ("wrap", "waveform") else 0
        check_bytes(self.bytes_of(padded), "n_fft, hop_length, num_mel_bins and spectrogram_length")
        if self.n_fft > MAX_FFT:
            raise ValueError(
                f"n_fft={self.n_fft} exceeds the supported maximum of {MAX_FFT:,}. The config file may be corrupt."
            )
        if self.n_fft < self.win_length or self.n_fft % 2:
            raise ValueError(f"n_fft={self.n_fft} must be even and at least win_length={self.win_length}")
        top = self.sampling_rate / 2 if self.fmax is None else self.fmax
        if not 0 <= self.fmin < top <= self.sampling_rate / 2:
            raise ValueError(
                f"fmin={self.fmin}, fmax={self.fmax} must satisfy 0 <= fmin < fmax <= "
                f"{self.sampling_rate / 2} Hz, half the sampling rate"
            )
        if self.mel_norm is not None and self.mel_scale == "kaldi":
            raise ValueError(
                f"mel_norm={self.mel_norm!r} needs mel_scale 'htk' or 'slaney', got 'kaldi': pass mel_norm=None"
            )
        if self.log_offset <= 0 and (self.log_floor is None or self.log_floor <= 0):
            raise ValueError(
                f"log_offset={self.log_offset}, log_floor={self.log_floor}: one must be above 0, since log(0) is undefined"
            )

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "AVFusionFeatureExtractor":
        """The published front end `name` (a key of `PRESETS`, such as "mbt" or "ast"). `overrides` replace single fields."""
        if name not in PRESETS:
            raise ValueError(f"name must be a preset, one of {', '.join(PRESETS)}, got {name!r}")
        if unknown := sorted(set(overrides) - set(inspect.signature(cls.__init__).parameters)):
            raise TypeError(f"unknown fields {', '.join(unknown)}; the fields are {', '.join(sorted(PRESETS[name]))}")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def seconds(self) -> float | None:
        """Duration in s of `spectrogram_length` frames, or None if the length is not fixed."""
        return (
            None if self.spectrogram_length is None else self.spectrogram_length * self.hop_length / self.sampling_rate
        )

    def bytes_of(self, samples: int) -> int:
        """About the memory that a waveform of this many samples takes, with all intermediates and the mel bank."""
        frames, rows = samples // self.hop_length + 1, self.spectrogram_length or 0
        bank = 24 * (self.n_fft // 2 + 1) * self.num_mel_bins  # its construction holds six of its size
        parts = 12 * samples + frames * (16 * self.n_fft + 8 * self.num_mel_bins) + 8 * rows * self.num_mel_bins + bank
        return 2 * parts if self.double_precision else parts

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.pop("feature_size", None)
        return output

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
        do_resample: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> BatchFeature:
        """Computes the log-mel spectrogram of one mono waveform or of a list of them.

        Args:
            audio: floats in [-1, 1], [samples] (numpy, torch, list of floats; [1, samples] is accepted); a row of datasets'
                `Audio` (a dict with `array` and `sampling_rate`); or a list of these.
            sampling_rate: Hz of the waveforms; rows have their own. A rate other than `self.sampling_rate` raises, unless
                resampling is enabled.
                If not given, the right rate is assumed, with a warning.
            return_tensors: "pt" or "np" for one array [batch, time, mel], None for a list of numpy arrays [time, mel].
            do_resample: overrides the field `do_resample` for this call.
            generator: source of the dither noise.

        Returns:
            BatchFeature with `input_features`, float32.

        Raises:
            ValueError: a wrong sampling rate, NaN or infinite values, no samples, integer samples, several channels.
        """
        waveforms = self.waveforms(audio, sampling_rate, do_resample)
        if self.dither and generator is None:
            raise ValueError(f"dither={self.dither} draws noise: pass generator=torch.Generator().manual_seed(...)")

        features = [self.spectrogram(w, generator) for w in waveforms]
        if return_tensors is not None and TensorType(return_tensors) == TensorType.PYTORCH:
            lengths = sorted({len(f) for f in features})
            if len(lengths) > 1:
                raise ValueError(
                    f"spectrograms of {lengths[0]} to {lengths[-1]} frames cannot be stacked: set "
                    "spectrogram_length and padding, or pass return_tensors=None"
                )
            return BatchFeature({"input_features": torch.stack(features) if len(features) > 1 else features[0][None]})
        return BatchFeature({"input_features": [f.numpy() for f in features]}, tensor_type=return_tensors)

    def waveforms(self, audio: Any, sampling_rate: int | None, do_resample: bool | None = None) -> list[torch.Tensor]:
        """The waveforms of a call, checked and resampled: float32 [samples] at `self.sampling_rate` each."""
        wanted = self.do_resample if do_resample is None else do_resample
        return [
            self._at_rate(self._check(waveform, name), rate, wanted)
            for waveform, rate, name in waveforms_of(audio, sampling_rate)
        ]

    def _at_rate(self, waveform: torch.Tensor, rate: int | None, do_resample: bool) -> torch.Tensor:
        """The waveform at `self.sampling_rate`. Raises ValueError if it has another rate and `do_resample` is False."""
        if rate is None:
            if do_resample:
                raise ValueError("do_resample=True needs sampling_rate=, the rate of the audio in Hz")
            logger.warning_once(
                f"sampling_rate= is not given: the audio is assumed to be at {self.sampling_rate} Hz. Pass it, so that "
                "a wrong rate is detected."
            )
            return waveform
        check_rate(rate, "sampling_rate")
        if rate != self.sampling_rate:
            if not do_resample:
                raise ValueError(
                    f"sampling_rate={rate} Hz, but these features need {self.sampling_rate} Hz. Resample the audio, or "
                    "pass do_resample=True (windowed sinc, as torchaudio.functional.resample)."
                )
            samples = math.ceil(len(waveform) * self.sampling_rate / rate)
            check_bytes(
                self.bytes_of(samples),
                f"{len(waveform):,} samples at {rate} Hz, {samples:,} at {self.sampling_rate} Hz",
            )
            return resample(waveform, rate, self.sampling_rate)
        return waveform

    def spectrogram(self, waveform: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Steps 1 to 8 of the module's docstring: float32 [samples] at `sampling_rate` to float32 [time, mel]."""
        check_bytes(
            self.bytes_of(waveform.shape[-1]),
            f"{waveform.shape[-1]:,} samples in frames of n_fft={self.n_fft} at hop_length={self.hop_length}",
            "Pass a shorter waveform, or a larger hop_length.",
        )
        if self.double_precision:
            waveform = waveform.double()
        if self.subtract_mean:
            waveform = waveform - waveform.mean()
        lengths = ("sampling_rate", "win_length", "hop_length", "n_fft", "num_mel_bins", "spectrogram_length")
        check_sizes({name: getattr(self, name) for name in lengths})
        length = self.spectrogram_length
        if length is not None and self.padding in ("wrap", "waveform"):
            missing = self._samples_for(length) - waveform.shape[-1]
            if missing > 0 and self.padding == "wrap":
                waveform = waveform.repeat(1 + math.ceil(missing / len(waveform)))[: len(waveform) + missing]
            elif missing > 0:
                waveform = torch.nn.functional.pad(waveform, (0, missing))

        logmel = self._log_mel(waveform, generator)
        surplus = 0 if length is None else len(logmel) - length
        if surplus > 0:
            if self.truncation == "error":
                raise ValueError(
                    f"the audio has {len(logmel)} frames, but spectrogram_length is {length}: pass at most "
                    f"{self.seconds:g} s, or set truncation to 'start' or 'center'"
                )
            if surplus > 1:  # one more frame is a result of rounding
                logger.warning_once(
                    f"audio longer than {length} frames ({self.seconds:g} s, spectrogram_length) is cut to its "
                    f"{self.truncation}"
                )
            first = surplus // 2 if self.truncation == "center" else 0
            logmel = logmel[first : first + length]
        pad = (0, 0, 0, max(-surplus, 0))
        if self.padding == "spectrogram":
            logmel = torch.nn.functional.pad(logmel, pad, value=self.padding_value)
        logmel.sub_(self.mean).div_(self.divisor * self.std)
        if self.padding == "normalized":
            logmel = torch.nn.functional.pad(logmel, pad, value=self.padding_value)
        return logmel.float()

    def _log_mel(self, waveform: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        window = _window(self.window_type, self.win_length, self.window_periodic, waveform.dtype)
        plain = not (self.dither or self.remove_dc_offset or self.preemphasis)
        # Plain frames can be as long as the FFT: the zero-padded window replaces a copy with zeros.
        rest = self.n_fft - self.win_length if plain else 0
        padded, count = self._pad_to_frames(waveform, rest)
        if not plain:
            frames = padded.unfold(0, self.win_length, self.hop_length)[:count]
            if self.dither:
                frames = frames + self.dither * torch.randn(
                    frames.shape, generator=generator
                )  # float32 also in float64
            if self.remove_dc_offset:
                frames = frames - frames.mean(dim=1, keepdim=True)
            if self.preemphasis:
                # Kaldi repeats the first sample of each frame, so that sample keeps 1 - preemphasis of itself.
                previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
                frames = frames - self.preemphasis * previous
            frames = frames * window
        else:
            frames = padded.unfold(0, self.n_fft, self.hop_length)[:count] * torch.nn.functional.pad(window, (0, rest))
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n=self.n_fft)).square_()
        # |X|^2 in one pass over adjacent values. abs(), which uses hypot(), takes four times as long, to be exact where squares
        # leave float32's range: at 1e-19 and 1e19, far from any audio.
        spectrum = spectrum[..., 0] + spectrum[..., 1]
        if self.power == 1.0:
            spectrum.sqrt_()
        elif self.power != 2.0:
            spectrum.pow_(self.power / 2)
        fmax = self.sampling_rate / 2 if self.fmax is None else float(self.fmax)
        mel = spectrum @ _mel_bank(
            self.mel_scale,
            self.mel_norm,
            self.num_mel_bins,
            self.n_fft,
            self.sampling_rate,
            float(self.fmin),
            fmax,
            waveform.dtype,
        )
        if self.log_offset:
            mel += self.log_offset
        if self.log_floor is not None:
            mel.clamp_min_(self.log_floor)
        return mel.log_() if self.log == "ln" else mel.log10_()

    def _pad_to_frames(self, waveform: torch.Tensor, rest: int) -> tuple[torch.Tensor, int]:
        """[samples] -> the padded waveform and the number of frames. Frame i is `win_length` samples from i * hop on; `rest`
        zeros follow the last frame.
        """
        pad, samples, win, hop = torch.nn.functional.pad, len(waveform), self.win_length, self.hop_length
        if self.framing == "pad_end":
            count = math.ceil(samples / hop)
            return pad(waveform, (0, max((count - 1) * hop + win - samples, 0) + rest)), count
        if self.framing == "snip":
            if samples < win:
                raise ValueError(
                    f"audio has {samples} samples, but framing 'snip' needs at least one frame of {win}: pass a longer waveform"
                )
            return pad(waveform, (0, rest)) if rest else waveform, 1 + (samples - win) // hop
        if self.framing == "center":
            edge = self.n_fft // 2
            if samples <= edge:
                raise ValueError(
                    f"audio has {samples} samples, but framing 'center' reflects {edge} of them and needs more: pass a longer "
                    "waveform"
                )
            waveform = pad(waveform[None], (edge, edge), mode="reflect")[0]
            return pad(waveform[(self.n_fft - win) // 2 :], (0, rest)), 1 + samples // hop
        # "reflect": Kaldi's snip_edges=False, which also repeats the edge sample
        count = (samples + hop // 2) // hop
        before = win // 2 - hop // 2
        mirror = waveform.flip(0)
        if samples < win:
            raise ValueError(f"audio has {samples} samples, but framing 'reflect' needs {win}: pass a longer waveform")
        head = [mirror[samples - before :]] if before > 0 else []
        body = waveform if before >= 0 else waveform[-before:]
        return torch.cat([*head, body, mirror, waveform.new_zeros(rest)]), count

    def _samples_for(self, frames: int) -> int:
        """The smallest number of samples that gives `frames` whole frames."""
        if self.framing == "snip":
            return (frames - 1) * self.hop_length + self.win_length
        if self.framing == "center":
            return (frames - 1) * self.hop_length
        return frames * self.hop_length

    def _check(self, audio: np.ndarray | torch.Tensor | Sequence[float], name: str) -> torch.Tensor:
        """One waveform as float32 [samples]. Raises ValueError with the argument `name`, the value and the remedy."""
        if not torch.is_tensor(audio):
            array = np.asarray(audio)
            if array.dtype == object or array.dtype.kind not in "fiub":
                raise ValueError(f"{name} holds {array.dtype} values: pass numbers (numpy, torch or a list of floats)")
            audio = torch.from_numpy(native(np.asarray(array, order="C")))  # keeps the rank, unlike ascontiguousarray
        if audio.ndim == 2 and audio.shape[0] == 1:
            audio = audio[0]
        if audio.ndim != 1:
            raise ValueError(
                f"{name} has shape {tuple(audio.shape)}, but a waveform is mono, [samples]. Mix channels first (audio.mean(0) "
                "of [channels, samples]); pass a batch as a list of waveforms (list(audio))."
            )
        if audio.numel() == 0:
            raise ValueError(f"{name} is empty: pass at least one sample, or None where a clip has no audio track")
        if not audio.is_floating_point():
            raise ValueError(
                f"{name} holds integers ({audio.dtype}): convert it to floats in [-1, 1] first (16 bit samples: audio / 32768)"
            )
        audio = audio.detach().to("cpu", torch.float32)
        # One NaN or infinity makes the sum non-finite, which takes a tenth of the time. A sum of finite values may overflow.
        if not math.isfinite(audio.sum().item()) and not audio.isfinite().all():
            wrong = int((~audio.isfinite()).sum())
            raise ValueError(
                f"{name} has {wrong} NaN or infinite values of {audio.numel()}: clean or drop this waveform"
            )
        low, high = torch.aminmax(audio)
        loudest = max(-low.item(), high.item())
        if loudest > MAX_SAMPLE:
            raise ValueError(
                f"{name} holds a sample of {loudest:g}, but a waveform lies in [-1, 1]: clean or drop this waveform"
            )
        if loudest > LOUDEST:
            logger.warning_once(
                f"audio holds floats beyond {LOUDEST:g}, but a waveform lies in [-1, 1]: divide samples on the scale of 16 bits by "
                "32768 (this warning is shown once)"
            )
        return audio


__all__ = ["PRESETS", "AVFusionAudioKwargs", "AVFusionFeatureExtractor"]
