"""Published front ends: name of a preset -> the fields of `AVFusionFeatureExtractor`, with units and sources."""

from typing import Any

# Shared by the Kaldi-style front ends: 25 ms Hann frames every 10 ms at 16 kHz, power, log above float32's epsilon.
KALDI_FBANK = {
    "sampling_rate": 16000,  # Hz
    "window_type": "hann",
    "window_periodic": False,
    "win_length": 400,  # samples, 25 ms
    "hop_length": 160,  # samples, 10 ms
    "n_fft": 512,
    "power": 2.0,
    "num_mel_bins": 128,
    "mel_scale": "kaldi",
    "mel_norm": None,
    "fmin": 20.0,  # Hz
    "fmax": None,  # Nyquist
    "log": "ln",
    "log_offset": 0.0,
    "log_floor": 1.1920928955078125e-07,
    "preemphasis": 0.97,
    "remove_dc_offset": True,
    "dither": 0.0,
    "subtract_mean": True,
    "framing": "snip",
    "padding_value": 0.0,
    "truncation": "start",
}

PRESETS: dict[str, dict[str, Any]] = {
    # MBT and AV-MAE. Known (papers, scenic's AudioSet configuration): 16 kHz mono, 25 ms Hamming window, 10 ms hop, 128 bins,
    # 8 s = 800 rows, mean 1.102, std 2.762, windows past the end wrap around, evaluation takes the centred window. The
    # originals read stored log-mels, so FFT length, mel edges, magnitude, log offset and edge handling are a self-consistent
    # reconstruction, not a reference.
    "mbt": {
        "sampling_rate": 16000,  # Hz
        "window_type": "hamming",
        "window_periodic": True,
        "win_length": 400,  # samples, 25 ms
        "hop_length": 160,  # samples, 10 ms
        "n_fft": 512,
        "power": 1.0,
        "num_mel_bins": 128,
        "mel_scale": "kaldi",
        "mel_norm": None,
        "fmin": 0.0,  # Hz
        "fmax": 8000.0,  # Hz
        "log": "ln",
        "log_offset": 1e-6,
        "log_floor": None,
        "preemphasis": 0.0,
        "remove_dc_offset": False,
        "dither": 0.0,
        "subtract_mean": False,
        "framing": "pad_end",
        "spectrogram_length": 800,  # frames, 8 s
        "padding": "wrap",
        "padding_value": 0.0,
        "truncation": "center",
        "mean": 1.102,
        "std": 2.762,
        "divisor": 1.0,
    },
    # AST (and MMT's MAT): data loader of YuanGongND/ast; zeros are appended before normalisation, AudioSet statistics.
    "ast": {
        **KALDI_FBANK,
        "spectrogram_length": 1024,  # frames, 10.24 s
        "padding": "spectrogram",
        "mean": -4.2677393,
        "std": 4.5689974,
        "divisor": 2.0,
    },
    # LAVISH on AVE with Swin-V2 (GenjiB/LAVISH): 1 s as a 192 x 192 spectrogram, zeros are appended after normalisation.
    "lavish": {
        **KALDI_FBANK,
        "num_mel_bins": 192,
        "hop_length": 83,  # samples: int(5.2 ms * 16 kHz)
        "spectrogram_length": 192,
        "padding": "normalized",
        "mean": -4.984795570373535,
        "std": 3.7079780101776123,
        "divisor": 2.0,
    },
    # LAVISH on AVE with a ViT: 1 s as 102 x 128, of which patches of 16 use 96 rows.
    "lavish_ave_vit": {
        **KALDI_FBANK,
        "spectrogram_length": 102,
        "padding": "normalized",
        "mean": -4.1426,
        "std": 3.2001,
        "divisor": 2.0,
    },
    # LAVISH on MUSIC-AVQA: 1.95 s as 193 rows of 10 ms, the last of which is cut.
    "lavish_avqa": {
        **KALDI_FBANK,
        "num_mel_bins": 192,
        "spectrogram_length": 192,
        "padding": "normalized",
        "mean": -5.385333061218262,
        "std": 3.5928637981414795,
        "divisor": 2.0,
    },
    # LAVISH on AVSBench-S4: 1 s (the README's command) as 98 rows of 10 ms, and 94 rows of zeros.
    "lavish_avs": {
        **KALDI_FBANK,
        "num_mel_bins": 192,
        "spectrogram_length": 192,
        "padding": "normalized",
        "mean": -5.210531711578369,
        "std": 3.5918314456939697,
        "divisor": 2.0,
    },
    # CAV-MAE (YuanGongND/cav-mae, AudioSet): as AST, but divided by the standard deviation itself.
    "cav_mae": {
        **KALDI_FBANK,
        "spectrogram_length": 1024,
        "padding": "spectrogram",
        "mean": -5.081,
        "std": 4.4849,
        "divisor": 1.0,
    },
    # VGGish (harritaylor/torchvggish f3f9096, the port of AudioSet's that AVSBench and LAVISH use). All rows of the waveform, not
    # normalised; `vggish_examples` cuts them into examples of 96 rows. The original computes in float64.
    "vggish": {
        "sampling_rate": 16000,  # Hz
        "window_type": "hann",
        "window_periodic": True,
        "win_length": 400,  # samples, 25 ms
        "hop_length": 160,  # samples, 10 ms
        "n_fft": 512,
        "power": 1.0,
        "num_mel_bins": 64,
        "mel_scale": "kaldi",
        "mel_norm": None,
        "fmin": 125.0,  # Hz
        "fmax": 7500.0,  # Hz
        "log": "ln",
        "log_offset": 0.01,
        "log_floor": None,
        "preemphasis": 0.0,
        "remove_dc_offset": False,
        "dither": 0.0,
        "subtract_mean": False,
        "framing": "snip",
        "spectrogram_length": None,
        "padding": "none",
        "padding_value": 0.0,
        "truncation": "start",
        "mean": 0.0,
        "std": 1.0,
        "divisor": 1.0,
        "double_precision": True,
    },
}

# AV-MAE does not normalise in pretraining or on VGGSound; its AudioSet fine-tuning uses MBT's statistics. On AudioSet 10 s are
# 1000 rows.
PRESETS["avmae"] = {**PRESETS["mbt"], "mean": 0.0, "std": 1.0}
PRESETS["lavish_ave_swin"] = PRESETS["lavish"]


__all__ = ["KALDI_FBANK", "PRESETS"]
