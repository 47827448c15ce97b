"""Compares the benchmark records with the facts collected from their sources (one JSON file each), if available."""

import json
import re

import pytest

from hf_avfusion.data.benchmarks.records import BENCHMARKS, LABELS, read_labels

OWN = {"sounding_shapes", "avdigits", "esc10"}  # rendered here, or a subset that came with its audio
COLLECTED = [name for name in BENCHMARKS if name not in OWN]

# Name of a list in a facts file -> our label file.
LABEL_FILES = {
    "vggsound": {"classes": "vggsound", "classes_stat_csv_order": "vggsound_stat_order"},
    "audioset": {"classes": "audioset", "mids": "audioset_mids"},
    "kinetics400": {"classes": "kinetics400"},
    "kinetics_sounds": {"classes_32": "kinetics_sounds_32", "classes_31": "kinetics_sounds_31"},
    "epic_kitchens_100": {"verbs": "epic_kitchens_100_verb", "nouns": "epic_kitchens_100_noun"},
    "moments_in_time": {"classes_v1_339": "moments_in_time_v1", "classes_v2_305": "moments_in_time_v2"},
    "ave": {"classes": "ave"},
    "avsbench_s4": {"classes": "avsbench_s4"},
    "music_avqa": {"classes": "music_avqa_answers"},
    "ucf101": {"classes": "ucf101"},
    "esc50": {"classes": "esc50"},
    "charades": {"classes": "charades"},
}

# (benchmark, variant, split) -> path of its row count under `splits`; other splits have no row count.
ROWS = {
    ("vggsound", None, "test"): ("official test.csv rows",),
    ("audioset", "balanced", "train"): ("official segments csv", "balanced_train"),
    ("audioset", "balanced", "eval"): ("official segments csv", "eval"),
    ("audioset", "mini", "train"): ("official segments csv", "balanced_train"),
    ("audioset", "mini", "eval"): ("official segments csv", "eval"),
    ("audioset", "as500k", "train"): ("AS-500K", "AV-MAE config", "train"),
    ("audioset", "as500k", "eval"): ("official segments csv", "eval"),
    ("audioset", "full", "train"): ("official segments csv", "unbalanced_train"),
    ("audioset", "full", "eval"): ("official segments csv", "eval"),
    ("kinetics_sounds", "31_ogmge", "train"): ("OGM-GE id lists", "train"),
    ("kinetics_sounds", "31_ogmge", "test"): ("OGM-GE id lists", "test"),
    ("epic_kitchens_100", None, "train"): ("train",),
    ("epic_kitchens_100", None, "validation"): ("validation",),
    ("ave", None, "train"): ("train",),
    ("ave", None, "validation"): ("val",),
    ("ave", None, "test"): ("test",),
    ("avsbench_s4", None, "train"): ("train",),
    ("avsbench_s4", None, "validation"): ("val",),
    ("avsbench_s4", None, "test"): ("test",),
    ("music_avqa", None, "train"): ("train",),
    ("music_avqa", None, "validation"): ("val",),
    ("music_avqa", None, "test"): ("test",),
    ("ucf101", "split1", "train"): ("train/test split 1", 0),
    ("ucf101", "split1", "test"): ("train/test split 1", 1),
    ("charades", None, "train"): ("train",),
    ("charades", None, "test"): ("test",),
}

# Path of the official file's columns under `annotation_format`.
COLUMNS = {
    "vggsound": ("data/vggsound.csv", "columns"),
    "audioset": ("balanced_train_segments.csv", "columns"),
    "kinetics400": ("official csv columns",),
    "epic_kitchens_100": ("EPIC_100_train/validation.csv", "columns"),
    "ave": ("Annotations.txt", "columns"),
    "music_avqa": ("avqa-*.json", "fields"),
    "esc50": ("meta/esc50.csv", "columns"),
    "charades": ("Charades_v1_train.csv", "columns"),
}

LICENSES = re.compile(r"CC BY(?:-\w\w)* \d\.\d|MIT|Apache-2\.0|AI2|research")  # as both sides abbreviate them


def at(facts, path):
    for step in path:
        facts = facts[step]
    return facts


@pytest.fixture
def facts(shared, request):
    file = shared / "benchmarks" / f"{request.param}.json"
    return request.param, json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("facts", COLLECTED, indirect=True)
def test_record_matches_the_collected_facts(facts):
    name, found = facts
    record = BENCHMARKS[name]
    assert {repository.id for repository in record.hub_ids} == {row["id"] for row in found["hub_ids"] if row["id"]}
    length = found["clip_length_s"]  # a sentence if the clips' length varies
    assert record.clip_seconds == (length if isinstance(length, int | float) else None)
    if name in COLUMNS:  # a remark in brackets may follow a column's name
        columns = at(found["annotation_format"], COLUMNS[name])
        assert [column.split(" (")[0] for column in columns] == list(record.annotation_columns)
    # Licenses known from memory are in `uncertain`, not in `license`.
    assert set(LICENSES.findall(" ".join((record.license, *record.uncertain)))) >= set(LICENSES.findall(found["licence"])) - {
        "CC BY 3.0"  # the license of ESC-10, which ESC-50's facts file also names
    }  # fmt: skip
    if "from memory" in found["licence"]:
        assert not LICENSES.findall(record.license)
        assert any("from memory" in doubt and LICENSES.search(doubt) for doubt in record.uncertain)


@pytest.mark.parametrize("facts", COLLECTED, indirect=True)
def test_label_names_match_the_collected_facts(facts):
    name, found = facts
    for key, file in LABEL_FILES[name].items():
        assert list(read_labels(file)) == found[key], file


@pytest.mark.parametrize("facts", COLLECTED, indirect=True)
def test_row_counts_match_the_collected_facts(facts):
    name, found = facts
    record = BENCHMARKS[name]
    for variant in record.variants or [None]:
        for split, rows in record.variant(variant).splits.items():
            place = ROWS.get((name, variant, split)) or ROWS.get((name, None, split))
            if name == "esc50":  # one fold of five is held out
                assert rows == found["splits"]["clips"] // 5 * (4 if split == "train" else 1)
            elif place is None:
                assert rows is None, f"{name} {variant} {split}: {rows} is from nowhere"
            else:
                assert rows == at(found["splits"], place)


def test_every_label_file_is_compared_or_made_here():
    compared = {file for files in LABEL_FILES.values() for file in files.values()}
    made = {"ave_events", "avdigits", "esc10", "kinetics_sounds_ogmge", "music_avqa_question_types", "music_avqa_words"}
    assert {file.stem for file in LABELS.glob("*.txt")} == compared | made
