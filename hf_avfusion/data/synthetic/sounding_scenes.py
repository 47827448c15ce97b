"""The scenes of SoundingShapes: moving shapes that make sounds.

A scene is sampled first, as plain numbers. Frames, waveform, masks, events, question and caption are all computed from it, so
they always agree. Encoding and writing are in `sounding_shapes.py`.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np

# Ordered so that the first K classes, for any K, are as easy to distinguish as possible.
SHAPES = ("circle", "cross", "triangle", "ring", "square", "star", "bar", "moon")
SOUNDS = ("tone", "hiss", "buzz", "chirp", "warble", "bell", "trill", "rumble")
MAX_CLASSES = len(SHAPES)

# Increased whenever the same seed gives other clips, so that old shards are not mistaken for new ones.
VERSION = 2

BACKGROUND_LEVEL = 10 ** (-60 / 20)  # RMS of the constant background noise, relative to full scale
LEVELS = (-14.0, -20.0)  # dB, RMS of a sound at the peak of its pulses; the loudest sound then never clips
DISTRACTOR_GAIN = 10 ** (-12 / 20)  # a smaller shape is 12 dB quieter than the dominating one's quietest level
# Fractions of the shorter side. With 3,000 clips, the many possible positions are harder for a small transformer than the
# shapes. So the dominating shape is large and moves little: with radii of 0.21 to 0.27, a linear classifier of one frame
# reaches 77 % over four shapes, and 97 % with these.
RADII = (0.26, 0.31)
SMALL_RADII = (0.08, 0.11)
TRIES = 12  # sampled positions and directions of a smaller shape, of which the best is used
PULSE_DEPTH = 0.18  # relative growth of a sounding shape at the peak of its envelope
FADE = 0.02  # s, at both ends of consecutive sounding seconds, so that there are no clicks that reveal a class

QUESTION_TYPES = (
    "audio counting",
    "audio existential",
    "visual counting",
    "visual recognition",
    "audio-visual recognition",
    "audio-visual location",
    "audio-visual temporal",
)


@dataclass(frozen=True)
class SceneSettings:
    """The settings of a rendering. With seed, split and number of the clip, they determine every clip.

    Args:
        rule: "xor" (label = (shape + sound) mod K: either modality alone is at chance) or "pair" (label = shape * K +
            sound: each modality determines half of it).
        num_classes: K, the number of shapes and of sounds, 2 to 8.
        width, height: frame size in pixels, even (4:2:0 chroma).
        duration: length of a clip in whole seconds.
        frame_rate: frames per second.
        sampling_rate: of the waveform, in Hz.
        distractors: number of smaller shapes in addition to the dominating one, 0 to 3. They are much quieter and make
            sounds only in seconds in which the dominating shape is silent.
    """

    rule: str = "xor"
    num_classes: int = 4
    width: int = 64
    height: int = 64
    duration: int = 2
    frame_rate: float = 12.5
    sampling_rate: int = 16000
    distractors: int = 0

    def __post_init__(self):
        if self.rule not in ("xor", "pair"):
            raise ValueError(f"rule must be 'xor' or 'pair', got {self.rule!r}")
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes must lie in 2..{MAX_CLASSES}, got {self.num_classes}")
        for name in ("width", "height"):
            size = getattr(self, name)
            if size < 16 or size % 2:
                raise ValueError(
                    f"{name} must be an even number of pixels, at least 16 (H.264 with 4:2:0 chroma), got {size}"
                )
        if self.duration < 1 or self.duration != int(self.duration):
            raise ValueError(f"duration must be a whole number of seconds (events are per second), got {self.duration}")
        if not 1 <= self.frame_rate <= 120:
            raise ValueError(f"frame_rate must lie in 1..120 frames per second, got {self.frame_rate}")
        if self.sampling_rate not in (16000, 22050, 24000, 32000, 44100, 48000):
            raise ValueError(f"sampling_rate must be one that AAC carries, 16000 or more, got {self.sampling_rate}")
        if not 0 <= self.distractors <= 3:
            raise ValueError(f"distractors must lie in 0..3, got {self.distractors}")

    @property
    def num_frames(self) -> int:
        return int(self.duration * self.frame_rate)

    @property
    def shape_names(self) -> list[str]:
        return list(SHAPES[: self.num_classes])

    @property
    def sound_names(self) -> list[str]:
        return list(SOUNDS[: self.num_classes])

    @property
    def pair_names(self) -> list[str]:
        return [f"{shape} {sound}" for shape in self.shape_names for sound in self.sound_names]

    @property
    def label_names(self) -> list[str]:
        if self.rule == "pair":
            return self.pair_names
        return [f"sum {value}" for value in range(self.num_classes)]

    @property
    def event_names(self) -> list[str]:
        """The shape-sound pairs, then background as the last class (as in AVE)."""
        return [*self.pair_names, "background"]

    @property
    def answer_names(self) -> list[str]:
        numbers = [str(n) for n in range(max(self.duration, 1 + self.distractors) + 1)]
        return [*numbers, "yes", "no", "left", "right", "nothing", *self.shape_names, *self.sound_names]

    def label(self, shape: int, sound: int) -> int:
        if self.rule == "pair":
            return shape * self.num_classes + sound
        return (shape + sound) % self.num_classes


@dataclass
class SceneObject:
    """One shape of a scene and its sound. Lengths are fractions of the frame's shorter side, times in seconds."""

    shape: int
    sound: int
    color: tuple[float, float, float]
    color_name: str
    radius: float
    angle: float
    spin: float
    start: tuple[float, float]
    velocity: tuple[float, float]
    sounding: np.ndarray = field(repr=False)  # bool [seconds]
    gain: float = 1.0
    pulse_rate: float = 3.0
    pulse_phase: float = 0.0
    sound_seed: int = 0


@dataclass
class Scene:
    settings: SceneSettings
    objects: list[SceneObject]  # the dominating one first
    backdrop: tuple[float, float, float]
    noise_seed: int

    @property
    def dominating(self) -> SceneObject:
        return self.objects[0]

    def sounding_object(self, second: int) -> SceneObject | None:
        """The shape that sounds in a second; at most one does."""
        return next((obj for obj in self.objects if obj.sounding[second]), None)


HUES = (
    ("red", 0.0),
    ("orange", 0.08),
    ("yellow", 0.16),
    ("green", 0.35),
    ("cyan", 0.5),
    ("blue", 0.6),
    ("purple", 0.78),
)


def sample_scene(settings: SceneSettings, shape: int, sound: int, rng: np.random.Generator) -> Scene:
    """Samples a scene with given classes of the dominating shape and its sound.

    No random draw depends on `sound`, and only the classes of the distractors depend on `shape`. So neither modality
    contains information about the other.
    """
    seconds = int(settings.duration)
    sounding = rng.random(seconds) < 0.65
    while sounding.sum() < (seconds + 1) // 2:  # the dominating shape makes its sound at least half of the time
        sounding[rng.integers(seconds)] = True

    objects = [_sample_object(shape, sound, RADII, sounding, rng)]
    loud, soft = LEVELS
    objects[0].gain = 10 ** (rng.uniform(soft, loud) / 20)
    quiet = 10 ** (soft / 20) * DISTRACTOR_GAIN
    free = ~sounding
    for _ in range(settings.distractors):
        other = (shape + rng.integers(1, settings.num_classes)) % settings.num_classes
        heard = free & (rng.random(seconds) < 0.5)
        free = free & ~heard
        sound_of_other = int(rng.integers(settings.num_classes))
        # Of several tries, use the one with the largest distance to the others, so that a sounding shape is visible.
        tries = [_sample_object(int(other), sound_of_other, SMALL_RADII, heard, rng) for _ in range(TRIES)]
        obj = max(tries, key=lambda candidate: _clearance(candidate, objects, settings))
        obj.gain = quiet
        objects.append(obj)

    backdrop = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.5), rng.uniform(0.05, 0.2))
    return Scene(settings, objects, backdrop, int(rng.integers(2**31)))


def _clearance(obj: SceneObject, others: list[SceneObject], settings: SceneSettings) -> float:
    """Returns the smallest distance of the centres over the clip, in pixels."""
    times = np.linspace(0, settings.duration, 4 * int(settings.duration) + 1)
    path = positions(obj, times, settings)
    return min(np.hypot(*(path - positions(other, times, settings)).T).min() for other in others)


def _sample_object(shape, sound, radii, sounding, rng) -> SceneObject:
    name, hue = HUES[rng.integers(len(HUES))]
    color = colorsys.hsv_to_rgb((hue + rng.uniform(-0.02, 0.02)) % 1.0, rng.uniform(0.6, 1.0), rng.uniform(0.85, 1.0))
    direction, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.3)
    return SceneObject(
        shape=shape,
        sound=sound,
        color=color,
        color_name=name,
        radius=rng.uniform(*radii),
        angle=rng.uniform(-0.12, 0.12),
        spin=rng.uniform(-0.06, 0.06),
        start=(rng.random(), rng.random()),
        velocity=(speed * np.cos(direction), speed * np.sin(direction)),
        sounding=sounding,
        pulse_rate=rng.uniform(2.0, 4.0),
        pulse_phase=rng.random(),
        sound_seed=int(rng.integers(2**31)),
    )


# ---------------------------------------------------------------------------------------------------------------- time


def envelope(obj: SceneObject, times: np.ndarray) -> np.ndarray:
    """Returns the loudness of a shape in 0..1 at `times` (s): pulses in its sounding seconds, 0 in its silent ones.

    The same curve scales the waveform and the shape's size. Its form is the same for all sounds, so the frames show that a
    shape makes a sound, but not which one.
    """
    second = np.clip(times.astype(np.int64), 0, len(obj.sounding) - 1)
    on = np.concatenate([[False], obj.sounding, [False]])
    here = on[second + 1]
    phase = times - second
    rise = np.where(on[second], 1.0, np.clip(phase / FADE, 0, 1))
    fall = np.where(on[second + 2], 1.0, np.clip((1.0 - phase) / FADE, 0, 1))
    pulse = 0.4 + 0.3 * (1 - np.cos(2 * np.pi * (obj.pulse_rate * times + obj.pulse_phase)))
    return here * rise * fall * pulse


def positions(obj: SceneObject, times: np.ndarray, settings: SceneSettings) -> np.ndarray:
    """Returns the centres (x, y) in pixels, [times, 2]. A shape moves straight and turns before it touches the border."""
    side = min(settings.width, settings.height)
    reach = 1.2 * obj.radius * (1 + PULSE_DEPTH) * side
    centres = []
    for extent, start, velocity in zip((settings.width, settings.height), obj.start, obj.velocity):
        room = max(extent - 2 * reach, 1e-6)
        path = start * room + velocity * side * times
        folded = np.abs((path + room) % (2 * room) - room)  # triangle wave: 0..room..0
        centres.append((extent - room) / 2 + folded)
    return np.stack(centres, axis=-1)


# ------------------------------------------------------------------------------------------------------------- drawing


def _signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Approximate signed distance to a shape of about unit radius, negative inside; v points down."""
    if shape == "circle":
        return np.hypot(u, v) - 0.92
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.8) - 0.22
    if shape == "moon":
        return np.maximum(np.hypot(u, v) - 1.0, 0.85 - np.hypot(u - 0.55, v))
    if shape == "star":
        # By symmetry, half of one of the five points is enough: one line from its tip to its notch.
        angle = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        radius = np.hypot(u, v)
        tip, notch = np.array([1.15, 0.0]), 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        normal = np.array([notch[1], tip[0] - notch[0]]) / np.hypot(notch[1], tip[0] - notch[0])
        return (radius * np.cos(angle) - tip[0]) * normal[0] + radius * np.sin(angle) * normal[1]
    au, av = np.abs(u), np.abs(v)
    if shape == "square":
        return np.maximum(au, av) - 0.82
    if shape == "bar":
        return np.maximum(au - 1.1, av - 0.38)
    if shape == "cross":
        return np.minimum(np.maximum(au - 1.1, av - 0.34), np.maximum(av - 1.1, au - 0.34))
    if shape == "triangle":
        return np.maximum(v + 0.1, 0.866 * au - 0.5 * (v + 0.1)) - 0.6
    raise ValueError(f"unknown shape {shape!r}; the shapes are: {', '.join(SHAPES)}")


def pixel_coverage(obj: SceneObject, times: np.ndarray, settings: SceneSettings) -> np.ndarray:
    """Returns the share of each pixel that a shape covers at `times`, float32 [times, height, width] in 0..1, antialiased."""
    side = min(settings.width, settings.height)
    centre = positions(obj, times, settings).astype(np.float32)
    radius = (obj.radius * side * (1 + PULSE_DEPTH * envelope(obj, times))).astype(np.float32)[:, None, None]
    angle = (obj.angle + obj.spin * times).astype(np.float32)[:, None, None]
    x = np.arange(settings.width, dtype=np.float32)[None, None, :] + 0.5 - centre[:, 0, None, None]
    y = np.arange(settings.height, dtype=np.float32)[None, :, None] + 0.5 - centre[:, 1, None, None]
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    distance = _signed_distance(SHAPES[obj.shape], cos * x + sin * y, cos * y - sin * x)
    return np.clip(0.5 - distance * radius, 0.0, 1.0)


def draw_frames(scene: Scene) -> np.ndarray:
    """Draws the frames, uint8 [num_frames, height, width, 3], with the dominating shape on top; frame i is at i / frame_rate."""
    settings = scene.settings
    times = np.arange(settings.num_frames) / settings.frame_rate
    frames = np.empty((len(times), settings.height, settings.width, 3), dtype=np.float32)
    frames[:] = np.float32(255) * np.asarray(scene.backdrop, dtype=np.float32)
    for obj in reversed(scene.objects):
        cover = pixel_coverage(obj, times, settings)[..., None]
        frames += cover * (np.float32(255) * np.asarray(obj.color, dtype=np.float32) - frames)
    return (frames + 0.5).astype(np.uint8)


def masks(scene: Scene) -> np.ndarray:
    """Returns the visible pixels of the sounding shape at the middle of each second, bool [seconds, height, width].

    The mask of a silent second is empty.
    """
    settings = scene.settings
    result = np.zeros((int(settings.duration), settings.height, settings.width), dtype=bool)
    for second in range(len(result)):
        obj = scene.sounding_object(second)
        if obj is None:
            continue
        # The time of the frame shown then, so that mask and frame agree in every pixel.
        time = np.array([int((second + 0.5) * settings.frame_rate) / settings.frame_rate])
        result[second] = pixel_coverage(obj, time, settings)[0] > 0.5
        for above in scene.objects[: scene.objects.index(obj)]:
            result[second] &= pixel_coverage(above, time, settings)[0] <= 0.5
    return result


# ---------------------------------------------------------------------------------------------------------------- audio


def _timbre(sound: str, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a steady waveform of about unit RMS with the timbre and pitch pattern of a class, at a random pitch."""
    turn = 2 * np.pi
    if sound == "tone":
        return np.sqrt(2) * np.sin(turn * (rng.uniform(350, 700) * times + rng.random()))
    if sound == "hiss":
        noise = rng.standard_normal(len(times) + 1)
        return np.diff(noise) / np.sqrt(2)  # tilted to the high end
    if sound == "rumble":
        noise = rng.standard_normal(len(times))
        spectrum = np.fft.rfft(noise)
        hz = np.fft.rfftfreq(len(noise), times[1] - times[0])
        low = np.fft.irfft(spectrum / (1 + (hz / rng.uniform(90, 150)) ** 4), len(noise))
        return low / low.std()
    if sound == "buzz":
        orders = np.arange(1, 21)[:, None]
        wave = (np.sin(turn * orders * (rng.uniform(110, 180) * times + rng.random())[None]) / np.sqrt(orders)).sum(0)
        return wave / wave.std()
    if sound == "chirp":
        sweep = (times * rng.uniform(3.5, 5.5) + rng.random()) % 1.0
        pitch = rng.uniform(500, 800) * 2.0 ** (2.2 * sweep)
    elif sound == "warble":
        pitch = rng.uniform(1000, 1500) * (1 + 0.15 * np.sin(turn * (rng.uniform(6, 9) * times + rng.random())))
    elif sound == "trill":
        high = ((times * rng.uniform(5, 7) + rng.random()) % 1.0) < 0.5
        pitch = rng.uniform(1800, 2400) * np.where(high, 1.5, 1.0)
    elif sound == "bell":
        base = rng.uniform(300, 500) * times + rng.random()
        return sum(np.sin(turn * ratio * base) for ratio in (1.0, 2.76, 5.4, 8.93)) / np.sqrt(2)
    else:
        raise ValueError(f"unknown sound {sound!r}; the sounds are: {', '.join(SOUNDS)}")
    step = times[1] - times[0]
    return np.sqrt(2) * np.sin(turn * (np.cumsum(pitch) * step + rng.random()))


def synthesise(scene: Scene) -> np.ndarray:
    """Computes the waveform, float32 [duration * sampling_rate], mono, within -1..1."""
    settings = scene.settings
    times = np.arange(int(settings.duration) * settings.sampling_rate) / settings.sampling_rate
    wave = BACKGROUND_LEVEL * np.random.default_rng(scene.noise_seed).standard_normal(len(times))
    for obj in scene.objects:
        if obj.sounding.any():
            timbre = _timbre(SOUNDS[obj.sound], times, np.random.default_rng(obj.sound_seed))
            wave += obj.gain * envelope(obj, times) * timbre
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- annotations


def events(scene: Scene) -> list[int]:
    """Returns for each second the index in `event_names` of the sounding pair, or of background."""
    settings = scene.settings
    result = []
    for second in range(int(settings.duration)):
        obj = scene.sounding_object(second)
        pairs = settings.num_classes**2
        result.append(pairs if obj is None else obj.shape * settings.num_classes + obj.sound)
    return result


def _side(obj: SceneObject, time: float, settings: SceneSettings) -> str:
    return "left" if positions(obj, np.array([time]), settings)[0, 0] < settings.width / 2 else "right"


def make_question(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str]:
    """Makes a templated question about the scene: (type in QUESTION_TYPES, question, answer in `answer_names`)."""
    settings, obj = scene.settings, scene.dominating
    kind = QUESTION_TYPES[rng.integers(len(QUESTION_TYPES))]
    seconds = int(settings.duration)
    if kind == "audio counting":
        count = sum(scene.sounding_object(second) is not None for second in range(seconds))
        return kind, "In how many seconds can a sound be heard?", str(count)
    if kind == "audio existential":
        present = {other.sound for other in scene.objects if other.sounding.any()}
        absent = [sound for sound in range(settings.num_classes) if sound not in present]
        asked = obj.sound if not absent or rng.random() < 0.5 else absent[rng.integers(len(absent))]
        answer = "yes" if asked in present else "no"
        return kind, f"Is there a {SOUNDS[asked]} in the clip?", answer
    if kind == "visual counting":
        return kind, "How many shapes are there?", str(len(scene.objects))
    if kind == "visual recognition":
        return kind, "Which shape is the largest?", SHAPES[obj.shape]
    if kind == "audio-visual recognition":
        return kind, f"Which sound does the {SHAPES[obj.shape]} make?", SOUNDS[obj.sound]
    second = int(rng.integers(seconds))
    if kind == "audio-visual temporal":
        heard = scene.sounding_object(second)
        return kind, f"Which shape sounds in second {second + 1}?", "nothing" if heard is None else SHAPES[heard.shape]
    second = int(np.flatnonzero(obj.sounding)[0])
    question = f"On which side is the {SHAPES[obj.shape]} in the middle of the first second in which it sounds?"
    return kind, question, _side(obj, second + 0.5, settings)


def caption(scene: Scene) -> str:
    """Describes the scene in one sentence."""
    phrases = []
    for number, obj in enumerate(scene.objects):
        size = "large" if number == 0 else "small"
        heard = [str(second + 1) for second in np.flatnonzero(obj.sounding)]
        does = f"makes a {SOUNDS[obj.sound]} in second {' and '.join(heard)}" if heard else "is silent"
        phrases.append(f"a {size} {obj.color_name} {SHAPES[obj.shape]} {does}")
    return ("; ".join(phrases) + ".").capitalize()
