"""The histogram of clips per class: its table is exact, and the figure agrees with it."""

import csv

import numpy as np
import pytest

from hf_avfusion.visualization.histograms import class_histogram


def pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share(figure, colour):
    """Share of the pixels within a few steps of a colour."""
    return (np.abs(figure - np.array(colour)).max(axis=2) < 12).mean()


def test_table_and_figure(tmp_path):
    before = [10, 100_000, 0, 1000, *range(500, 1000)]
    after = [10, 500, 0, 500, *[500] * 500]
    names = [f"class {k}, called something rather long" for k in range(504)]
    table = class_histogram(tmp_path / "a.png", {"all": before, "kept": after}, names, cap=500, title="Two")
    assert table == tmp_path / "a.csv"
    with table.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", "all", "kept"]
    assert rows[1] == ["class 1, called something rather long", "100000", "500"]
    assert rows[-1] == ["class 2, called something rather long", "0", "0"]
    assert sorted(rows[1:]) == sorted([name, str(a), str(b)] for name, a, b in zip(names, before, after))
    assert [int(row[1]) for row in rows[1:]] == sorted(before, reverse=True)
    first, red = (0x9A, 0xA5, 0xB1), (0xD1, 0x49, 0x5B)
    figure = pixels(tmp_path / "a.png")
    assert share(figure, first) > 0.005  # removed clips are drawn above kept clips
    assert share(figure, red) > 0.2
    class_histogram(tmp_path / "same.png", {"all": after, "kept": after}, names)
    assert share(pixels(tmp_path / "same.png"), first) < 0.005  # nothing was removed: only the legend has the colour
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.csv", "same.png", "same.csv"}


def test_few_classes_and_wrong_counts(tmp_path):
    class_histogram(tmp_path / "few.png", {"mine": [3, 0]}, ["cat", "dog"])
    assert (tmp_path / "few.csv").read_text() == "class,mine\ncat,3\ndog,0\n"
    for counts, message in (
        ({}, "1 to 4 selections, got 0"),
        ({"a": [1]}, r"counts\['a'\] must be 2 numbers"),
        ({"a": [1, -1]}, "must be 2 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            class_histogram(tmp_path / "no.png", counts, ["cat", "dog"])
