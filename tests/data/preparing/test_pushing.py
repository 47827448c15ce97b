"""Pushing shards: uploads, skipped uploads, errors, and the card."""

import hashlib
import shutil

import pytest
from rendering import render_clip

from hf_avfusion.data.benchmarks.loading import BENCHMARKS, get_record, load_benchmark
from hf_avfusion.data.preparing import pushing
from hf_avfusion.data.preparing.pushing import folder_shards, push_shards, write_card
from hf_avfusion.data.preparing.settings import ClipSettings
from hf_avfusion.data.preparing.shards import prepare_benchmark, prepare_folder
from hf_avfusion.tasks import task_of_benchmark

QUIET = {"num_proc": 1, "progress": False, "settings": ClipSettings(trim=True, short_side=32)}


class RecordingApi:
    """The methods of HfApi that a push uses, on dictionaries; `fails` has the errors that calls raise."""

    endpoint = "https://hub.test"
    repositories: dict = {}
    commits: list = []
    fails: list = []

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert repo_type == "dataset"
        assert exist_ok
        self.repositories.setdefault(repo_id, {"private": private, "files": {}})

    def list_repo_tree(self, repo_id, *, repo_type, recursive):
        from huggingface_hub import RepoFile

        for path, data in self.repositories[repo_id]["files"].items():
            lfs = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 100}
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            yield RepoFile(path=path, size=len(data), oid=git, lfs=lfs if path.endswith("0.parquet") else None)

    def create_commit(self, repo_id, operations, *, commit_message, repo_type):
        if self.fails:
            raise self.fails.pop(0)
        self.commits.append([operation.path_in_repo for operation in operations])
        for operation in operations:
            with operation.as_file() as file:
                self.repositories[repo_id]["files"][operation.path_in_repo] = file.read()


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", RecordingApi)
    for name, value in (("repositories", {}), ("commits", []), ("fails", [])):
        monkeypatch.setattr(RecordingApi, name, value)
    return RecordingApi


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    video = render_clip(num_frames=25)
    for number in range(5):
        (folder / f"v{number}_000000.mp4").write_bytes(video)
    rows = [f"v{number},0,air horn,{'test' if number < 3 else 'train'}" for number in range(6)]
    (folder / "vggsound.csv").write_text("\n".join(rows) + "\n")
    prepare_benchmark("vggsound", folder, folder / "shards", rows_per_shard=2, **QUIET)
    return folder / "shards"


@pytest.fixture
def shards(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "shards")


def push(folder, repo_id="org/vgg", **options):
    return push_shards(folder, repo_id, **{"progress": False, "wait": 0.0, **options})


def error(status):
    from huggingface_hub.errors import HfHubHTTPError

    failed = HfHubHTTPError.__new__(HfHubHTTPError)
    failed.args = (f"status {status}",)
    failed.response = type("Response", (), {"status_code": status})()
    return failed


SHARDS = ["data/train-00000-of-00001.parquet", *(f"data/test-0000{k}-of-00002.parquet" for k in range(2))]
REST = ["README.md", "coverage.json", "coverage.csv", "coverage.md"]


def test_shards_are_uploaded_unchanged_and_the_card_last(hub, shards):
    assert push(shards) == "https://hub.test/datasets/org/vgg"
    assert hub.commits == [SHARDS, REST]
    repository = hub.repositories["org/vgg"]
    assert repository["private"]
    assert {path: repository["files"][path] for path in SHARDS} == {
        path: (shards / path).read_bytes() for path in SHARDS
    }


def test_uploaded_files_are_not_uploaded_again(hub, shards, monkeypatch):
    monkeypatch.setattr(pushing, "COMMIT_FILES", 1)
    push(shards)
    assert hub.commits == [[path] for path in SHARDS] + [REST]
    hub.commits.clear()
    del hub.repositories["org/vgg"]["files"][SHARDS[1]]  # as if the push had been stopped
    hub.repositories["org/vgg"]["files"][SHARDS[2]] = b"another content"
    push(shards)
    assert hub.commits == [[SHARDS[1]], [SHARDS[2]], REST]
    assert hub.repositories["org/vgg"]["files"][SHARDS[2]] == (shards / SHARDS[2]).read_bytes()


def test_server_errors_are_retried_and_refusals_are_not(hub, shards, caplog):
    hub.fails[:] = [error(500), error(429)]
    push(shards)
    assert hub.commits == [SHARDS, REST]
    assert caplog.text.count("of 4 in 0 s") == 2
    hub.fails[:] = [error(403)]
    with pytest.raises(OSError, match="status 403"):
        push(shards)
    hub.fails[:] = [error(503)] * pushing.ATTEMPTS
    with pytest.raises(OSError, match="status 503"):
        push(shards)
    assert not hub.fails


def test_other_shards_in_the_repository_raise(hub, shards):
    push(shards)
    hub.repositories["org/vgg"]["files"]["data/test-00000-of-00007.parquet"] = b""
    with pytest.raises(ValueError, match=r"other shards of test \(data/test-00000-of-00007.parquet\)"):
        push(shards)


def test_invalid_folders_and_names_raise(hub, shards, tmp_path):
    with pytest.raises(ValueError, match="org/name, got 'vgg'"):
        push(shards, "vgg")
    with pytest.raises(FileNotFoundError, match="contains no shards"):
        push(tmp_path)
    whole = (shards / SHARDS[1]).read_bytes()
    (shards / "README.md").write_text("a card of its own")
    (shards / SHARDS[1]).write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="not a complete parquet file"):
        push(shards)
    (shards / SHARDS[1]).unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        push(shards)
    assert not hub.repositories  # before a repository was created


def test_card(hub, shards, tmp_path):
    from huggingface_hub import DatasetCard

    push(shards)
    card = DatasetCard.load(shards / "README.md")
    assert card.data.configs == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*.parquet"},
                {"split": "test", "path": "data/test-*.parquet"},
            ],
        }
    ]
    assert (card.data.license, card.data.pretty_name) == ("other", "VGGSound")
    for text in (
        "| train | 2 | 3 | 1 | 0 |",
        "CC BY 4.0 (the list of clips)",
        "ICASSP 2020",
        'load_benchmark("vggsound", "train", source="org/vgg")',
        "short_side 32",
    ):
        assert text in card.text
    edited = (shards / "README.md").read_text().replace("# VGGSound", "# My VGGSound")
    (shards / "README.md").write_text(edited)
    for path in shards.glob("data/train-*"):
        path.unlink()
    push(shards, "org/other")
    card = DatasetCard.load(shards / "README.md")
    assert "# My VGGSound" in card.text  # the text stays, and the splits are updated
    assert card.data.configs[0]["data_files"] == [{"split": "test", "path": "data/test-*.parquet"}]


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("vggsound", "video-classification"),
        ("ave", "video-classification"),
        ("esc50", "audio-classification"),
        ("avsbench_s4", "image-segmentation"),
        ("music_avqa", "visual-question-answering"),
    ],
)
def test_category_of_a_benchmark(shards, name, category):
    from huggingface_hub import DatasetCard

    (shards / "README.md").unlink(missing_ok=True)
    card = write_card(shards, folder_shards(shards), "org/mine", get_record(name))
    assert DatasetCard.load(card).data.task_categories == [category]


def test_every_benchmark_has_one_category():
    """A task that is added to `TASKS` states its own."""
    for record in BENCHMARKS.values():
        task = task_of_benchmark(record.task)
        assert task.dataset_categories.keys() == set(task.benchmark_tasks)


def test_card_of_a_folder_of_clips(hub, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / f"mine/{name}").mkdir(parents=True)
        for number in range(2):
            (tmp_path / f"mine/{name}/{number}.mp4").write_bytes(render_clip(num_frames=5))
    prepare_folder(tmp_path / "mine", tmp_path / "out", **QUIET)
    push(tmp_path / "out", "me/pets")
    card = (tmp_path / "out/README.md").read_text()
    assert "# pets" in card
    assert 'load_dataset("me/pets", split="train", streaming=True)' in card
    assert "license" not in card


def test_rendered_shards(hub, tmp_path):
    from hf_avfusion.data.synthetic.sounding_shapes import render

    render(tmp_path, num_train=2, num_validation=0, num_test=2, num_proc=1, progress=False)
    push(tmp_path, "me/shapes", name="sounding_shapes")
    assert hub.commits == [["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], ["README.md"]]
    assert "license: apache-2.0" in (tmp_path / "README.md").read_text()
    assert (
        len(list(load_benchmark("sounding_shapes", "test", source=tmp_path))) == 2
    )  # the card does not disturb reading


def test_pushed_shards_stream_from_a_hub_over_http(local_hub, shards):
    """Uses the real HfApi and a server; the streamed rows equal those of the folder, including bytes."""
    for _ in range(2):
        push(shards, "org/vgg-http", token=local_hub.token)
    local = list(load_benchmark("vggsound", "test", source=shards))
    streamed = list(load_benchmark("vggsound", "test", streaming=True, source="org/vgg-http"))
    assert len(local) == 3
    assert streamed == local
    assert streamed[0]["video"]["bytes"]
