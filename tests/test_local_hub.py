"""The tests' own Hub answers the real clients: huggingface_hub, datasets (also streaming), a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, list_repo_refs, snapshot_download, whoami
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError


def test_files_branches_tags_and_pull_requests(local_hub, tmp_path):
    api = HfApi()
    assert api.endpoint == local_hub.url
    assert whoami()["name"] == local_hub.user
    api.create_repo("org/name")
    api.create_repo("org/name", exist_ok=True)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.safetensors").write_bytes(b"w" * 1000)
    (tmp_path / "config.json").write_text("{}")
    api.upload_folder(repo_id="org/name", folder_path=tmp_path)
    assert local_hub.files("org/name") == {"config.json": b"{}", "sub/weights.safetensors": b"w" * 1000}
    api.create_tag("org/name", tag="v1")
    api.create_branch("org/name", branch="other")
    api.upload_file(repo_id="org/name", path_in_repo="new", path_or_fileobj=b"new", revision="other")
    request = api.upload_file(repo_id="org/name", path_in_repo="asked", path_or_fileobj=b"?", create_pr=True)
    assert request.pr_revision == "refs/pr/1"
    assert set(local_hub.files("org/name", revision="refs/pr/1")) - set(local_hub.files("org/name")) == {"asked"}
    assert {ref.name for ref in list_repo_refs("org/name").branches} == {"main", "other"}
    api.delete_file("config.json", "org/name")
    assert sorted(api.list_repo_files("org/name", revision="v1")) == ["config.json", "sub/weights.safetensors"]
    assert Path(hf_hub_download("org/name", "asked", revision="refs/pr/1")).read_bytes() == b"?"
    folder = Path(snapshot_download("org/name", revision="v1"))
    assert (folder / "sub" / "weights.safetensors").read_bytes() == b"w" * 1000
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/name", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/other")


def test_refusals_change_nothing(local_hub):
    api = HfApi()
    api.create_repo("org/name", private=True)
    with pytest.raises(HfHubHTTPError):
        HfApi(token="hf_wrong").upload_file(repo_id="org/name", path_in_repo="a", path_or_fileobj=b"a")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("org/name")
    stale = [CommitOperationAdd("a", b"a")]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("org/name", stale, commit_message="late", parent_commit="0" * 40)
    assert local_hub.titles("org/name") == ["initial commit"]


def test_failures_come_as_often_as_asked(local_hub):
    api = HfApi()
    api.create_repo("org/name")
    local_hub.fail("GET", "/api/models/org/name", 403)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.model_info("org/name")
    assert api.model_info("org/name").id == "org/name"
    api.upload_file(repo_id="org/name", path_in_repo="a.bin", path_or_fileobj=bytes(100_000))
    local_hub.fail("GET", "a.bin", "cut")
    assert os.path.getsize(hf_hub_download("org/name", "a.bin")) == 100_000  # the client asks for the rest


def test_a_dataset_is_pushed_and_streamed(local_hub):
    features = datasets.Features({"clip": datasets.Value("binary"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"clip": [bytes([index]) * 50 for index in range(20)], "label": [index % 2 for index in range(20)]}
    datasets.Dataset.from_dict(rows, features=features).push_to_hub("org/clips", num_shards=2)
    assert sum(path.endswith(".parquet") for path in local_hub.files("org/clips", kind="datasets")) == 2
    streamed = datasets.load_dataset("org/clips", split="train", streaming=True)
    assert streamed.features["label"].names == ["no", "yes"]
    assert [row["clip"] for row in streamed] == rows["clip"]
    assert datasets.load_dataset("org/clips", split="train")["label"] == rows["label"]


@pytest.mark.slow
def test_another_process_is_a_client_too(local_hub, tmp_path):
    code = "from huggingface_hub import HfApi; HfApi().create_repo('org/name'); print(HfApi().whoami()['name'])"
    environment = {**os.environ, **local_hub.environment(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == local_hub.user
    assert ("models", "org/name") in local_hub.repositories
