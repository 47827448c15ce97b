"""Atomic writes: the old file or the new one, whatever stops the writing."""

import pytest

from hf_avfusion.files import PARTIAL, atomic_path, markdown_table, write_text


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
