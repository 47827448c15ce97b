"""hub.push and loading over HTTP from a local Hub server: branches, pull requests, adapters, training, and failures."""

import os

import pytest
import torch
from equality import assert_outputs_of, assert_same_bits
from huggingface_hub import HfApi, ModelCard, constants
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset, default_collate
from transformers import AutoConfig, AutoModelForVideoClassification, AutoProcessor, pipeline
from transformers.pipelines import get_task
from travellers import ROWS, SIDE, traveller

from hf_avfusion import AVTrainer, AVTrainingArguments, hub

REPO = "org/mbt-sounding-shapes"


@pytest.fixture
def waits(monkeypatch):
    """Replaces `time.sleep`; returns the list of requested pauses."""
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


def commits(local_hub) -> list[tuple[str, str, int]]:
    return [request for request in local_hub.requests if "/commit/" in request[1]]


# ------------------------------------------------------------------------------------------------------------- success


def test_push_makes_one_commit_that_loads_by_name(local_hub):
    model, processor = traveller("mbt")
    done = hub.push(model, processor, REPO)
    assert local_hub.titles(REPO) == ["Upload MBTForAudioVisualClassification", "initial commit"]
    assert done.oid == local_hub.repositories["models", REPO].branches["main"]
    assert {"model.safetensors", "config.json", "processor_config.json", "README.md", "modeling_mbt.py"} <= set(
        local_hub.files(REPO)
    )
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(REPO).state_dict(), model.state_dict())
    assert AutoProcessor.from_pretrained(REPO).to_dict() == processor.to_dict()
    assert pipeline("audio-visual-classification", model=REPO, device="cpu").model.config.num_labels == 5
    assert ModelCard.load(REPO).data.library_name == "transformers"
    hub.push(model, processor, REPO)  # the same again changes nothing
    assert len(local_hub.titles(REPO)) == 2


def test_the_task_of_a_pushed_model_leads_to_our_pipeline(local_hub):
    model, processor = traveller("mbt")
    hub.push(model, processor, "org/mine")
    assert get_task("org/mine") == "audio-visual-classification"
    assert type(pipeline(model="org/mine", device="cpu")).__name__ == "AudioVisualClassificationPipeline"


def test_a_name_without_namespace_gets_that_of_the_user(local_hub):
    hub.push(*traveller("mbt"), "shapes")
    card = local_hub.files(f"{local_hub.user}/shapes")["README.md"].decode()
    assert f'model="{local_hub.user}/shapes"' in card


def test_a_later_push_deletes_weights_of_another_sharding(local_hub):
    model, processor = traveller("mbt")
    hub.push(model, processor, REPO)
    HfApi().upload_file(repo_id=REPO, path_in_repo="kept.py", path_or_fileobj=b"# not ours")
    HfApi().upload_file(repo_id=REPO, path_in_repo="a/model.safetensors", path_or_fileobj=b"not ours")
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    hub.push(model, processor, REPO, max_shard_size="10KB")
    files = set(local_hub.files(REPO))
    assert "model.safetensors" not in files
    assert {"model.safetensors.index.json", "kept.py", "a/model.safetensors", "README.md"} <= files
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(REPO).state_dict(), model.state_dict())


def test_a_branch_a_tag_and_a_pull_request(local_hub):
    model, processor = traveller("mbt")
    hub.push(model, processor, REPO, private=True)
    HfApi().create_tag(REPO, tag="v1")
    first = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    hub.push(model, processor, REPO, revision="next", commit_message="A later model")
    request = hub.push(model, processor, REPO, create_pr=True)
    assert request.pr_revision == "refs/pr/1"
    assert local_hub.titles(REPO, revision="next")[0] == "A later model"
    assert len(local_hub.titles(REPO)) == 2  # main has no new commit
    for revision, later in (("v1", False), ("next", True), ("refs/pr/1", True), (None, False)):
        options = {} if revision is None else {"revision": revision}
        loaded = AutoModelForVideoClassification.from_pretrained(REPO, **options).state_dict()
        assert torch.equal(loaded["classifier.bias"], first["classifier.bias"] + float(later)), revision
    with pytest.raises(hub.HubError, match="no such revision"):
        hub.push(model, processor, REPO, revision="refs/pr/9")
    with pytest.raises(OSError, match="v2"):
        AutoConfig.from_pretrained(REPO, revision="v2")


def test_push_of_an_adapter(local_hub):
    model, processor = traveller("mbt")
    hub.push(model, processor, REPO)
    base = AutoModelForVideoClassification.from_pretrained(REPO).eval()
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    adapted = get_peft_model(base, lora).eval()
    hub.push(adapted, processor, "org/adapter")
    files = local_hub.files("org/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert "model.safetensors" not in files
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == REPO
    assert card.data.library_name == "peft"
    loaded = PeftModel.from_pretrained(AutoModelForVideoClassification.from_pretrained(REPO), "org/adapter").eval()
    by_transformers = AutoModelForVideoClassification.from_pretrained("org/adapter").eval()
    inputs = {"pixel_values": torch.rand(1, 4, 3, SIDE, SIDE), "input_features": torch.rand(1, ROWS, 16)}
    with torch.no_grad():
        for other in (loaded, by_transformers):
            assert_outputs_of(adapted, other(**inputs).logits, lambda: adapted(**inputs).logits)


class _Clips(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.rand(4, 3, SIDE, SIDE, generator=generator),
            "input_features": torch.rand(ROWS, 16, generator=generator),
            "labels": torch.tensor(index),
        }


def test_training_with_push_to_hub_then_the_export(local_hub, tmp_path):
    model, processor = traveller("mbt")
    args = AVTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        push_to_hub=True, hub_model_id=REPO, hub_strategy="checkpoint", hub_always_push=True,
    )  # fmt: skip
    trainer = AVTrainer(model, args, default_collate, train_dataset=_Clips(), processing_class=processor)
    trainer.train()
    trainer.push_to_hub()
    files = set(local_hub.files(REPO))
    assert {"model.safetensors", "processor_config.json", "last-checkpoint/model.safetensors"} <= files
    assert not any(name.endswith(".py") for name in files)  # training writes no code
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(REPO).state_dict(), trainer.model.state_dict())
    hub.push(trainer.model, processor, REPO)
    files = local_hub.files(REPO)
    assert "modeling_mbt.py" in files
    assert b"auto_map" in files["config.json"]
    assert "last-checkpoint/model.safetensors" in files
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(REPO).state_dict(), trainer.model.state_dict())


# ------------------------------------------------------------------------------------------------------------- failure


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [
        ("POST", "/api/repos/create", 500),
        ("POST", "/preupload/", 503),
        ("PUT", "/lfs/", 500),
        ("PUT", "/lfs/", "cut"),
        ("POST", "/commit/", 500),
        ("POST", "/commit/", "cut"),
    ],
)
def test_temporary_errors_are_retried(local_hub, waits, method, path, how):
    model, processor = traveller("mbt")
    local_hub.fail(method, path, how)
    hub.push(model, processor, REPO)
    assert len(local_hub.titles(REPO)) == 2
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(REPO).state_dict(), model.state_dict())
    assert waits  # there was a pause


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (500, r"org/mbt-sounding-shapes was not pushed.*500"),
        ("cut", r"org/mbt-sounding-shapes was not pushed.*push again"),
    ],
)
def test_permanent_errors_give_one_message_and_no_commit(local_hub, waits, how, message):
    model, processor = traveller("mbt")
    local_hub.fail("POST", "/commit/", how, times=100)
    with pytest.raises(hub.HubError, match=message):
        hub.push(model, processor, REPO, attempts=3)
    assert len(commits(local_hub)) >= 3
    assert local_hub.titles(REPO) == ["initial commit"]
    assert local_hub.files(REPO) == {}


def test_refusals_are_not_retried(local_hub, waits):
    model, processor = traveller("mbt")
    with pytest.raises(
        hub.HubError, match=r"org/mbt-sounding-shapes was not pushed.*\(401\): log in with `hf auth login`"
    ):
        hub.push(model, processor, REPO, token="hf_wrong")
    assert ("models", REPO) not in local_hub.repositories
    with pytest.raises(hub.HubError, match=r"no such repository.*create_repo=True"):
        hub.push(model, processor, REPO, create_repo=False)
    with pytest.raises(hub.HubError, match="no such repository"):
        hub.push(model, processor, REPO, create_pr=True)
    hub.push(model, processor, REPO)
    local_hub.fail("POST", "/commit/", 403)
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    with pytest.raises(hub.HubError, match=r"has no write access \(403\)"):
        hub.push(model, processor, REPO)
    assert len(local_hub.titles(REPO)) == 2
    assert not waits


def test_offline_mode_gives_a_hub_error(local_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub.HubError, match="HF_HUB_OFFLINE is set"):
        hub.push(*traveller("mbt"), REPO)


@pytest.mark.parametrize("name", ["../../etc/passwd", "org/a/b", "org/na me", "", "org/name.git", "-x", "http://a/b"])
def test_repository_names_are_checked_before_the_first_request(local_hub, name):
    with pytest.raises(ValueError, match="is not a valid repository id"):
        hub.push(*traveller("mbt"), name)
    assert not local_hub.requests


def test_the_export_is_written_before_the_first_request(local_hub):
    _, processor = traveller("mbt")
    with pytest.raises(ValueError, match="model must be"):
        hub.push(torch.nn.Linear(1, 1), processor, REPO)
    assert not local_hub.requests


def weights_address(local_hub) -> str:
    return f"/{REPO}/resolve/{local_hub.repositories['models', REPO].branches['main']}/model.safetensors"


def test_an_interrupted_download_is_retried(local_hub, waits):
    model, processor = traveller("mbt")
    hub.push(model, processor, REPO)
    local_hub.fail("GET", "model.safetensors", "cut")
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(REPO).state_dict(), model.state_dict())
    assert [request[:2] for request in local_hub.requests].count(("GET", weights_address(local_hub))) == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_server_error_while_loading_names_the_repository_and_the_next_load_works(local_hub, waits, name):
    model, processor = traveller("mbt")
    hub.push(model, processor, REPO)
    local_hub.fail("GET", name, 500)
    with pytest.raises(OSError, match=rf"{REPO}[\s\S]*500"):
        AutoModelForVideoClassification.from_pretrained(REPO)
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(REPO).state_dict(), model.state_dict())


def test_a_failed_load_names_the_repository_and_leaves_no_partial_weights(local_hub, waits):
    model, processor = traveller("mbt")
    hub.push(model, processor, REPO, private=True)
    local_hub.fail("GET", "model.safetensors", 500, times=100)
    with pytest.raises(OSError, match=r"mbt-sounding-shapes[\s\S]*500"):
        AutoModelForVideoClassification.from_pretrained(REPO)
    for folder, _, files in os.walk(constants.HF_HUB_CACHE):  # a later run would load these files as the weights
        assert not any(name.endswith(".safetensors") for name in files), folder
    local_hub.mend()
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(REPO).state_dict(), model.state_dict())
    for options in ({"token": "hf_wrong"}, {"token": False}):
        with pytest.raises(OSError, match="org/secret"):
            AutoModelForVideoClassification.from_pretrained("org/secret", **options)
