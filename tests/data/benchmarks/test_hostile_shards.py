"""Damaged and hostile tar shards and folders: one error each, which names the shard and the member."""

import io
import json
import os
import random
import tarfile
from pathlib import Path

import pytest

from hf_avfusion.data.benchmarks.folders import load_folder, load_unlabelled
from hf_avfusion.data.benchmarks.loading import get_record
from hf_avfusion.data.benchmarks.shards import find_shards
from hf_avfusion.data.benchmarks.tar_shards import count_samples, read_samples, sample_to_row

RECORD = get_record("ave")
GOOD = {"label": 3, "events": [0] * 10, "start": 1.0, "end": 2}


def write_tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], **options) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for member in members:
            if isinstance(member, tuple):
                name, data = member
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            else:
                archive.addfile(member)
    return path


def of_type(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def with_size(size: int, name: str = "a.mp4", kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header alone."""
    member = of_type(name, kind)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def rows_of(path: Path) -> list[dict]:
    return [sample_to_row(sample, RECORD, str(path)) for sample in read_samples(path)]


CLIP = ("a.mp4", b"clip")


def test_a_good_shard_with_folders(tmp_path):
    members = of_type("part", tarfile.DIRTYPE), ("part/a.mp4", b"clip"), ("part/a.json", json.dumps(GOOD).encode())
    path = write_tar(tmp_path / "s.tar", *members)
    (row,) = rows_of(path)
    assert (row["clip_id"], row["video"]["bytes"], row["label"], row["end"]) == ("part/a", b"clip", 3, 2)
    assert count_samples(path) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.LNKTYPE, "hard link.*tar --hard-dereference"),
        (tarfile.SYMTYPE, "a link, pipe or device"),
        (tarfile.FIFOTYPE, "a link, pipe or device"),
        (tarfile.CHRTYPE, "a link, pipe or device"),
    ],
)
def test_members_that_are_no_files(tmp_path, kind, message):
    path = write_tar(tmp_path / "s.tar", CLIP, of_type("b.mp4", kind, "a.mp4"))
    for read in (rows_of, count_samples):
        with pytest.raises(ValueError, match=rf"s\.tar: the member 'b\.mp4' is .*{message}"):
            read(path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("size", [8 * 10**12, 2**62, -512, -1])
def test_sizes_beyond_the_file(tmp_path, kind, size):
    path = tmp_path / "s.tar"
    path.write_bytes(with_size(size, kind=kind))
    for read in (rows_of, count_samples):
        with pytest.raises(ValueError, match=r"s\.tar") as caught:
            read(path)
        if kind == tarfile.REGTYPE:
            assert "its member 'a.mp4' states" in str(caught.value)


def test_a_sparse_member_is_not_expanded(tmp_path):
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(8 * 10**12)}
    member = tarfile.TarInfo("a.mp4")
    member.pax_headers, member.size = headers, 512
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(f"1\n{8 * 10**12 - 1}\n1\n".encode().ljust(512, b"\0")))
    with pytest.raises(ValueError, match=r"s\.tar: the member 'a\.mp4' is a sparse file"):
        rows_of(path)


def test_headers_without_end_in_one_another(tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(with_size(0, kind=tarfile.XHDTYPE)[:512] * 5000 + bytes(1024))
    with pytest.raises(ValueError, match=r"s\.tar: not a readable tar file"):
        rows_of(path)


def test_names_with_a_nul_or_of_another_encoding(tmp_path):
    path = tmp_path / "s.tar"
    for name in ("a\0b.mp4", "\udce9.mp4"):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            member = tarfile.TarInfo("a.mp4")
            member.pax_headers = {"path": name}
            archive.addfile(member)
        with pytest.raises(ValueError, match=r"s\.tar: the name .* has a NUL or is not UTF-8"):
            rows_of(path)


ANNOTATIONS = {
    "list": (b"[1, 2]", "holds \\[1, 2\\]"),
    "null": (b"null", "holds None"),
    "number": (b"7", "holds 7"),
    "broken": (b'{"label": ', "cannot be read"),
    "empty": (b"", "cannot be read"),
    "deep": (b"[" * 100_000, "cannot be read"),
    "deep value": (b'{"label":' + b"[" * 500 + b"]" * 500 + b"}", "label.*lacks|is not one of"),
    "latin1": (json.dumps({**GOOD, "x": "caf\xe9"}, ensure_ascii=False).encode("latin-1"), "cannot be read"),
    "start": (json.dumps({**GOOD, "start": "soon"}).encode(), "start='soon'"),
    "nan": (json.dumps({**GOOD, "end": float("nan")}).encode(), "end=nan"),
    "events": (json.dumps({**GOOD, "events": 3}).encode(), "events=3"),
    "label": (json.dumps({**GOOD, "label": {"a": 1}}).encode(), "is not one of"),
    "clip_id": (json.dumps({**GOOD, "clip_id": "\udce9"}).encode(), "clip_id="),
    "digits": (b'{"start": ' + b"9" * 5000 + b"}", "cannot be read|start="),
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations_of_wrong_kinds(tmp_path, name):
    data, message = ANNOTATIONS[name]
    path = write_tar(tmp_path / "s.tar", CLIP, ("a.json", data))
    with pytest.raises(ValueError, match=rf"s\.tar: sample a.*({message})") as caught:
        rows_of(path)
    assert len(str(caught.value)) < 500


def test_mutated_shards_raise_nothing_but_value_errors(tmp_path):
    members = [each for key in "abc" for each in ((f"{key}.mp4", b"clip"), (f"{key}.json", json.dumps(GOOD).encode()))]
    whole = write_tar(tmp_path / "s.tar", *members, format=tarfile.PAX_FORMAT).read_bytes()
    path, rng = tmp_path / "mutated.tar", random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 4, 40])):
            data[rng.randrange(7 * 1024)] = rng.choice([0, 255, 0x80, rng.randrange(256), *b"0178LKxgS1"])
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for read in (rows_of, count_samples):
            error = None
            try:
                read(path)
            except ValueError as caught:
                error = caught
            assert error is None or "mutated.tar" in str(error)


def test_pipes_as_shards_and_clips_raise_at_once(tmp_path):
    os.mkfifo(tmp_path / "test-00000-of-00001.tar")
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.tar is not a regular file"):
        find_shards(tmp_path, "test", ".tar")
    for read in (count_samples, lambda path: list(read_samples(path))):
        with pytest.raises(ValueError, match="is not a regular file"):
            read(tmp_path / "test-00000-of-00001.tar")
    (tmp_path / "clips/dog").mkdir(parents=True)
    os.mkfifo(tmp_path / "clips/dog/a.mp4")
    for load in (load_folder, load_unlabelled):
        with pytest.raises(ValueError, match=r"a\.mp4 is a pipe"):
            load(tmp_path / "clips")
    os.mkfifo(tmp_path / "clips/train.csv")
    with pytest.raises(ValueError, match=r"train\.csv is not a regular file"):
        load_folder(tmp_path / "clips")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        load_folder(tmp_path / "clips/train.csv")


@pytest.mark.parametrize("load", [load_folder, load_unlabelled])
def test_addresses_in_a_csv_are_refused_unless_allowed(tmp_path, load):
    table = tmp_path / "clips.csv"
    table.write_text("file,label,split\nhttps://example.org/a.mp4,dog,train\n")
    with pytest.raises(
        ValueError, match=r"clips\.csv: https://example\.org/a\.mp4: is an address inside a row.*--allow_urls"
    ):
        load(table)
    (row,) = load(table, allow_urls=True)
    assert row["video"]["path"] == row["clip_id"] == "https://example.org/a.mp4"
    for address in (f"file://{tmp_path}/a.mp4", "http://a.org/x::file:///etc/passwd"):
        table.write_text(f"file,label,split\n{address},dog,train\n")
        with pytest.raises(ValueError, match="is an address that a row may not hold"):
            load(table, allow_urls=True)
    table.write_text("file,label,split\na\0b.mp4,dog,train\n")
    with pytest.raises((ValueError, FileNotFoundError), match=r"clips\.csv"):
        load(table)
