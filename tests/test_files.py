"""Atomic writes: the old file or the new one, whatever stops the writing."""

import pytest

from hf_avfusion.files import PARTIAL, atomic_path, markdown_table, read_json, write_text


def test_a_file_is_written_with_its_folder(tmp_path):
    path = write_text(tmp_path / "a" / "file.txt", "first\n")
    assert path.read_bytes() == b"first\n"
    write_text(path, "second\n")
    assert path.read_bytes() == b"second\n"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = write_text(tmp_path / "file.txt", "old")

    def fail():
        with atomic_path(path) as partial:
            partial.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert (tmp_path / f"file.txt{PARTIAL}").exists()
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_failed_rename_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "file.txt", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_tables():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert markdown_table(["a"], []) == "| a |\n| --- |"
    hostile = markdown_table(["name", "n"], [["a | b\n`c`", 1]], aligned=True).splitlines()
    assert hostile == ["| name       | n |", "| ---------- | - |", "| a \\| b 'c' | 1 |"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "Expecting value"),
        (b'{"a": "\xe9"}', "utf-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"", "Expecting value"),
    ],
    ids=["broken", "Latin-1", "deep", "empty"],
)
def test_json_that_cannot_be_read_is_one_error_with_the_name_of_the_file(tmp_path, content, message):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"odd\.json is not JSON: .*{message}"):
        read_json(tmp_path / "odd.json")
