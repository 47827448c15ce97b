"""Tensors of SoundingShapes scenes for `lavish_evidence.py`: drawn and synthesised once, without encoding, and kept in one file.

A clip has `SECONDS` seconds. Each has one frame, of its middle, which is also the time of its mask, and the log-mel of its sound.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_avfusion import AVFusionFeatureExtractor, LavishProcessor
from hf_avfusion.data.synthetic.sounding_scenes import (
    QUESTION_TYPES,
    SceneSettings,
    draw_frames,
    events,
    make_question,
    masks,
    sample_scene,
    synthesise,
)
from hf_avfusion.files import atomic_path
from hf_avfusion.models.lavish.processing_lavish import frame_processor
from hf_avfusion.processing.question_words import QuestionWords

SECONDS = 2
SIDE = 64  # of frames, masks and log-mels, pixels
CLIP_FRAMES = 4  # of a VideoMAE, over the whole clip
CLASSES = 4  # shapes, and sounds
MAX_WORDS = 18
# Mean and deviation of these log-mels over 32 scenes.
LOG_MEL = {"mean": -3.1, "std": 2.4}


@dataclass
class Scenes:
    """Scenes of one split.

    Tensors: `pixel_values` [n, S, 3, 64, 64], `clip_values` [n, 4, 3, 64, 64], `input_features` [n, S, 64, 64], `clip_features`
    [n, 128, 64], `shape`, `sound`, `events` [n, S] (16: silence), `masks` uint8 [n, S, 64, 64], `input_ids` [n, 18],
    `answer`, `question_type` [n].
    """

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.tensors["shape"])


def settings(distractors: int) -> SceneSettings:
    return SceneSettings(
        rule="pair", num_classes=CLASSES, width=SIDE, height=SIDE, duration=SECONDS, distractors=distractors
    )


def make_processor(rows: int = SIDE) -> LavishProcessor:
    """Log-mels of `rows` x 64 of the whole waveform that is given; frames of 64 x 64."""
    extractor = AVFusionFeatureExtractor.from_preset(
        "lavish_ave_vit", hop_length=250, num_mel_bins=SIDE, spectrogram_length=rows, **LOG_MEL
    )
    return LavishProcessor(frame_processor(SIDE), extractor, num_segments=None)


def vocabulary(distractors: int) -> QuestionWords:
    """The words of all questions about such scenes."""
    rng, questions = np.random.default_rng(0), []
    for number in range(600):
        scene = sample_scene(settings(distractors), number % CLASSES, number // CLASSES % CLASSES, rng)
        questions.append(make_question(scene, rng)[1])
    return QuestionWords.from_questions(questions, MAX_WORDS)


def load_scenes(folder: Path, split: str, count: int, distractors: int) -> Scenes:
    """The scenes of a split; made and written at the first call. Splits have different seeds."""
    path = folder / f"{split}-{count}-{distractors}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = _make(split, count, distractors)
        with atomic_path(path) as partial:
            save_file(tensors, str(partial))
    return Scenes(load_file(str(path)))


def _make(split: str, count: int, distractors: int) -> dict[str, Tensor]:
    own = settings(distractors)
    seed = ("base", "train", "validation", "test").index(split)
    second, clip, words = make_processor(), make_processor(rows=2 * SIDE), vocabulary(distractors)
    values: dict[str, list] = {}
    for number in track(range(count), f"scenes of {split}"):
        rng = np.random.default_rng([seed, distractors, number])
        shape, sound = number % CLASSES, number // CLASSES % CLASSES
        scene = sample_scene(own, shape, sound, rng)
        frames, waveform = torch.from_numpy(draw_frames(scene)), torch.from_numpy(synthesise(scene))
        middles = [int((index + 0.5) * own.frame_rate) for index in range(SECONDS)]
        spread = np.linspace(0, own.num_frames - 1, CLIP_FRAMES).round().astype(int).tolist()
        kind, question, answer = make_question(scene, rng)
        row = {
            "pixel_values": second.video_processor(list(frames[middles].permute(0, 3, 1, 2)), return_tensors="pt"),
            "clip_values": second.video_processor(list(frames[spread].permute(0, 3, 1, 2)), return_tensors="pt"),
            "input_features": [
                second.feature_extractor(part.numpy(), sampling_rate=own.sampling_rate, return_tensors="pt")
                for part in waveform.chunk(SECONDS)
            ],
            "clip_features": clip.feature_extractor(
                waveform.numpy(), sampling_rate=own.sampling_rate, return_tensors="pt"
            ),
        }
        row = {
            "pixel_values": row["pixel_values"]["pixel_values"].reshape(SECONDS, 3, SIDE, SIDE),
            "clip_values": row["clip_values"]["pixel_values"].reshape(CLIP_FRAMES, 3, SIDE, SIDE),
            "input_features": torch.cat([each["input_features"] for each in row["input_features"]]),
            "clip_features": row["clip_features"]["input_features"][0],
            "shape": torch.tensor(shape),
            "sound": torch.tensor(sound),
            "events": torch.tensor(events(scene)),
            "masks": torch.from_numpy(masks(scene).astype(np.uint8)),
            "input_ids": torch.from_numpy(words(question)),
            "answer": torch.tensor(own.answer_names.index(answer)),
            "question_type": torch.tensor(QUESTION_TYPES.index(kind)),
        }
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: torch.stack(parts).contiguous() for name, parts in values.items()}
