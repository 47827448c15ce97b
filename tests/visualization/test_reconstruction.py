"""Reconstruction callback: what is shown where, in every option of the model, and that drawing leaves a training alone."""

import sys
from pathlib import Path

import pytest
import torch
from equality import assert_same_bits
from rendering import render_clip

from hf_avfusion.models.avmae.configuration_avmae import AVMAEConfig
from hf_avfusion.models.avmae.modeling_avmae import AVMAEForPreTraining
from hf_avfusion.models.avmae.processing_avmae import AVMAEProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.visualization import reconstruction as module
from hf_avfusion.visualization.reconstruction import ReconstructionCallback, draw_file_reconstruction, reconstruct

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
PNG = b"\x89PNG"


def make_processor():
    side = {"height": 32, "width": 32}
    extractor = AVFusionFeatureExtractor.from_preset("mbt", num_mel_bins=32, spectrogram_length=100, mean=0.0, std=1.0)
    return AVMAEProcessor(
        AVFusionVideoProcessor(size=side, crop_size=side), extractor, num_frames=4, span=1.0, audio_seconds=1.0
    )


def make_model(**options):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16, "image_size": 32,
        "patch_size": 8, "num_frames": 4, "num_mel_bins": 32, "spectrogram_length": 100, "video_mask_ratio": 0.75,
        "audio_mask_ratio": 0.5, "drop_remainder": True,
    }  # fmt: skip
    config = AVMAEConfig(**{**sizes, **options})
    model = AVMAEForPreTraining(config)
    for name, parameter in model.named_parameters():  # the last layer starts at zero
        if "prediction" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return render_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=25, seconds=1.0)


@pytest.fixture(scope="module")
def clip(processor, file):
    return processor.load_clip(str(file))[0]


def test_visible_patches_are_original_and_masked_patches_predicted(processor, clip):
    model = make_model().train()
    made = reconstruct(model, processor, clip, seed=3)
    assert model.training
    assert made.frames.shape == made.predicted_frames.shape == (4, 3, 32, 32)
    assert made.spectrogram.shape == made.predicted_spectrogram.shape == (96, 32)  # 100 rows are 12 patches of 8
    assert len(made.frame_times) == 4
    assert set(made.losses) == {"video", "audio"}
    hidden = made.hidden_pixels[:, None].expand_as(made.frames)
    assert hidden.float().mean() == 0.75
    assert made.hidden_cells.float().mean() == 0.5
    assert torch.allclose(made.frames[~hidden], made.predicted_frames[~hidden], atol=1e-6)
    assert torch.equal(made.spectrogram[~made.hidden_cells], made.predicted_spectrogram[~made.hidden_cells])
    assert (made.frames[hidden] - made.predicted_frames[hidden]).abs().mean() > 0.01
    # The processor's normalisation is undone, so pixels are those of the clip.
    pixels = processor.video_processor([clip.frames], do_rescale=False, do_normalize=False, return_tensors="pt")
    assert torch.allclose(made.frames * 255, pixels["pixel_values"][0].float(), atol=1e-3)
    assert "original shown at visible patches" in made.note

    everywhere = reconstruct(model, processor, clip, seed=3, keep_visible=False)
    assert torch.allclose(everywhere.predicted_frames[hidden], made.predicted_frames[hidden])
    assert not torch.allclose(everywhere.frames[~hidden], everywhere.predicted_frames[~hidden], atol=0.01)
    assert "everywhere" in everywhere.note
    assert not torch.equal(reconstruct(model, processor, clip, seed=4).hidden_pixels, made.hidden_pixels)


def test_explicit_masks(processor, clip):
    masks = {"video_mask": torch.arange(32)[None] >= 16, "audio_mask": torch.arange(48)[None] < 4}
    made = reconstruct(make_model(), processor, clip, masks=masks)
    assert not made.hidden_pixels[:2].any()
    assert made.hidden_pixels[2:].all()
    assert made.hidden_cells[:8].all()
    assert not made.hidden_cells[8:].any()


@pytest.mark.parametrize("standardization", ["patch", "patch_channels"])
def test_standardised_predictions_use_the_statistics_of_each_patch(processor, clip, standardization):
    """Zero predictions become the mean of each patch, or of each colour channel of a patch."""
    model = make_model(target_standardization=standardization)
    for stream in (model.decoder.video, model.decoder.audio):
        torch.nn.init.zeros_(stream.prediction.weight)
        torch.nn.init.zeros_(stream.prediction.bias)
    made = reconstruct(model, processor, clip, keep_visible=False)
    assert "mean and deviation of the original" in made.note

    def patches(frames):  # of two frames and 8 x 8 pixels
        return frames.unflatten(3, (4, 8)).unflatten(2, (4, 8)).unflatten(0, (2, 2))

    axes = (1, 2, 4, 6) if standardization == "patch" else (1, 4, 6)
    mean = patches(made.frames).mean(dim=axes, keepdim=True).expand_as(patches(made.frames))
    torch.testing.assert_close(patches(made.predicted_frames), mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"central_frame_target": True}, (2, 3, 32, 32)),
        ({"modalities": ("video",)}, (4, 3, 32, 32)),
        ({"modalities": ("audio",)}, None),
        ({"objective": "modality_inpainting", "audio_mask_ratio": 0.75, "video_mask_ratio": 0.5}, (4, 3, 32, 32)),
        ({"num_audio_channels": 3}, (4, 3, 32, 32)),
    ],
)
def test_every_kind_of_model_is_drawn(processor, file, tmp_path, options, shape):
    made = draw_file_reconstruction(make_model(**options), processor, str(file), tmp_path / "new.png")
    assert (tmp_path / "new.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["new.png"]  # no partial file is left
    if shape is None:
        assert made.frames is None
    else:
        assert made.frames.shape == made.predicted_frames.shape == shape
        assert made.hidden_pixels.shape == (shape[0], *shape[2:])
        assert len(made.frame_times) == shape[0]
    assert (made.spectrogram is None) == (options.get("modalities") == ("video",))
    assert ("other's visible patches" in made.note) == ("objective" in options)


def test_one_modality_of_a_two_stream_model(processor, file, tmp_path):
    made = draw_file_reconstruction(
        make_model(), processor, str(file), tmp_path / "a.png", reading={"tracks": ("audio",)}
    )
    assert made.frames is None
    assert set(made.losses) == {"audio"}
    with pytest.raises(ValueError, match="`pixel_values` was not given"):
        draw_file_reconstruction(
            make_model(objective="modality_inpainting", audio_mask_ratio=0.75, video_mask_ratio=0.5),
            processor, str(file), tmp_path / "a.png", reading={"tracks": ("audio",)},
        )  # fmt: skip


def test_many_frames_are_drawn_above_the_spectrograms(tmp_path):
    frames = torch.rand(16, 3, 32, 48)
    hidden = torch.rand(16, 32, 48) < 0.5
    cells = torch.rand(40, 32) < 0.5
    made = module.Reconstruction(
        frames, hidden, frames, None, torch.randn(40, 32), cells, torch.randn(40, 32), {}, "a note"
    )
    module.draw_reconstruction(tmp_path / "wide.png", made, title="a title", dpi=40)
    assert (tmp_path / "wide.png").read_bytes().startswith(PNG)


def test_drawing_reconstructions_does_not_change_training(processor, file, tmp_path):
    from pretraining_run import make_trainer

    def train(name, *callbacks):
        trainer = make_trainer(tmp_path, name, num_train_epochs=1, callbacks=callbacks)
        trainer.train()
        return trainer.model.state_dict()

    small = {"height": 16, "width": 16}
    extractor = AVFusionFeatureExtractor.from_preset("mbt", num_mel_bins=16, spectrogram_length=16, mean=0.0, std=1.0)
    fitting = AVMAEProcessor(AVFusionVideoProcessor(size=small, crop_size=small), extractor, num_frames=2, span=1.0)
    (tmp_path / "broken.mp4").write_bytes(b"not media")
    row = {"video": {"bytes": file.read_bytes(), "path": "named.mp4"}, "start": 0.0, "end": 1.0}
    callback = ReconstructionCallback(fitting, [str(tmp_path / "broken.mp4"), row], every=2)
    plain, drawn = train("plain"), train("drawn", callback)
    assert_same_bits(drawn, plain)
    folder = tmp_path / "drawn" / "reconstructions"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002.png", "step-000004.png"]
    with pytest.raises(ValueError, match=r"No clip can be drawn.*broken"):
        train("none", ReconstructionCallback(fitting, [str(tmp_path / "broken.mp4")], every=2))
    with pytest.raises(ValueError, match="at least 1 step"):
        ReconstructionCallback(fitting, [], every=0)
