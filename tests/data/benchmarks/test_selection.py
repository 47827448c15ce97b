"""The capped selection: no class exceeds its cap, no clip is left out needlessly, and the seed fixes the result."""

import csv
from collections import Counter

import numpy as np
import pytest

from hf_avfusion.data.benchmarks.annotations import read_annotations
from hf_avfusion.data.benchmarks.records import BENCHMARKS, read_labels
from hf_avfusion.data.benchmarks.selection import draw_selection, main, select_capped


def clips(count=2000, seed=0):
    """Labels as skewed as AudioSet's: class 0 in half of the clips, class 9 in few."""
    generator = np.random.default_rng(seed)
    share = 0.5 / 2.0 ** np.arange(10)
    drawn = [np.flatnonzero(generator.random(10) < share).tolist() for _ in range(count)]
    return [classes or [0] for classes in drawn]


def test_no_class_exceeds_its_cap_and_every_clip_that_fits_is_kept():
    labels = clips()
    kept = select_capped(labels, cap=120)
    counts = Counter(label for index in kept for label in labels[index])
    assert max(counts.values()) == 120
    assert kept == sorted(set(kept))
    for index in set(range(len(labels))) - set(kept):
        assert any(counts[label] == 120 for label in labels[index])
    rare = [index for index, classes in enumerate(labels) if 0 not in classes and 1 not in classes]
    assert len(set(rare) & set(kept)) / len(rare) > 2 * len(kept) / len(labels)  # keeps a larger share of rare classes


def test_seed_fixes_the_selection():
    labels = clips()
    assert select_capped(labels, 50, seed=1) == select_capped(labels, 50, seed=1) != select_capped(labels, 50, seed=2)
    assert select_capped(labels, 2000) == list(range(2000))
    assert select_capped([], 1) == []
    with pytest.raises(ValueError, match="cap must be at least 1"):
        select_capped(labels, 0)


def test_written_file_is_read_as_variant_as500k(tmp_path, capsys):
    mids, source = read_labels("audioset_mids"), tmp_path / "unbalanced_train_segments.csv"
    lines = [
        f'v{number}, 0.000, 10.000, "{",".join(mids[label] for label in classes)}"'
        for number, classes in enumerate(clips(200))
    ]
    source.write_text("# a comment\n# YTID, start_seconds, ...\n" + "\n".join(lines) + "\n")
    record = BENCHMARKS["audioset"].variant("as500k")
    output = tmp_path / record.annotations["train"]
    main([str(source), str(output), "--cap", "20"])
    rows = list(read_annotations(output, record, "train"))
    assert f"{len(rows)} of 200 clips" in capsys.readouterr().out
    assert max(Counter(label for row in rows for label in row.values["labels"]).values()) == 20
    assert set(output.read_text().splitlines()[1:]) < set(lines)
    assert "at most 20 per class, seed 0" in output.read_text()
    with pytest.raises(SystemExit):
        main([str(source), str(output)])
    assert "already exists" in capsys.readouterr().err


def test_class_counts_before_and_after_as_chart_and_table(tmp_path, capsys):
    mids, source = read_labels("audioset_mids"), tmp_path / "unbalanced_train_segments.csv"
    labels = clips(200)
    lines = [f'v{k}, 0.000, 10.000, "{",".join(mids[c] for c in classes)}"' for k, classes in enumerate(labels)]
    source.write_text("\n".join(lines) + "\n")
    output, chart = tmp_path / "as500k_train_segments.csv", tmp_path / "classes.png"
    main([str(source), str(output), "--cap", "20", "--histogram", str(chart)])
    assert "class counts before and after" in capsys.readouterr().out
    assert chart.read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 527
    before = Counter(label for classes in labels for label in classes)
    after = Counter(
        label for row in read_annotations(output, BENCHMARKS["audioset"], "train") for label in row.values["labels"]
    )
    names = read_labels("audioset")
    assert {row["class"]: int(row["unbalanced_train_segments"]) for row in rows} == {
        name: before[index] for index, name in enumerate(names)
    }
    assert [int(row["as500k_train_segments"]) for row in rows] == [after[names.index(row["class"])] for row in rows]
    again = tmp_path / "again.csv"
    with pytest.raises(SystemExit):
        main([str(source), str(again), "--histogram", str(tmp_path / "again.png")])
    assert "its CSV file would overwrite" in capsys.readouterr().err
    assert not again.exists()
    for where in ([tmp_path / "gone/again.csv"], [again, "--histogram", tmp_path / "gone/again.png"]):
        with pytest.raises(SystemExit):
            main([str(source), *map(str, where)])
        assert "its folder does not exist" in capsys.readouterr().err
        assert not again.exists()  # raised before the work
    with pytest.raises(FileExistsError, match="would overwrite a list of clips"):
        draw_selection(source, output, source.with_suffix(".png"))
