"""Parsers of annotation files, on real rows, on made-up rows in the published formats, and on whole official files."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from hf_avfusion.data.benchmarks import annotations
from hf_avfusion.data.benchmarks.annotations import PARSERS
from hf_avfusion.data.benchmarks.records import BENCHMARKS, read_labels

REAL = Path(__file__).parent / "annotations"


def read_annotations(file, record, split):
    return list(annotations.read_annotations(file, record, split))


def record(name, variant=None):
    return BENCHMARKS[name].variant(variant)


def written(tmp_path, text, name="rows.csv"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


# ---- real rows


def test_ave():
    rows = read_annotations(REAL / "trainSet.txt", record("ave"), "train")
    assert len(rows) == 8
    assert rows[0].clip_id == "c---zaDCTaE"
    assert rows[0].values == {"label": 0, "events": [0] * 10}
    assert rows[1].values["events"] == [28] * 6 + [0] * 4  # fCZi6I6kPpU: 6 to 10 s
    short = next(row for row in rows if row.clip_id == "A0bmJCe7zbg")
    helicopter = read_labels("ave").index("Helicopter")
    assert short.values == {"label": helicopter, "events": [28] * 4 + [helicopter] * 3 + [28] * 3}
    assert rows[-1].values["events"] == [28] * 10  # the one that runs from 0 to 0 s
    assert read_labels("ave_events")[28] == "Background"


def test_ogmge_list():
    rows = read_annotations(REAL / "my_test.txt", record("kinetics_sounds", "31_ogmge"), "test")
    first = rows[0]  # -3Mwkq-7TV4_2,10,23
    assert (first.clip_id, first.values, first.start, first.end) == ("-3Mwkq-7TV4_2", {"label": 23}, 2.0, 12.0)
    assert first.trimmed == ("-3Mwkq-7TV4_2", "-3Mwkq-7TV4_000002_000012")
    assert first.whole == ("-3Mwkq-7TV4",)


def test_music_avqa():
    rows = read_annotations(REAL / "avqa-val.json", record("music_avqa"), "validation")
    assert rows[0].clip_id == "00000028-7"
    assert rows[0].trimmed == ("00000028",)
    assert rows[0].values["question"] == "Is the ukulele in the video always playing?"
    assert rows[1].values["question"] == "Is the guzheng louder than the piano?"
    assert rows[3].values["question"] == "Is the flute on the left louder than the cello on the right?"
    answers, types = read_labels("music_avqa_answers"), read_labels("music_avqa_question_types")
    assert [answers[row.values["answer"]] for row in rows][:3] == ["yes", "yes", "saxophone"]
    assert types[rows[1].values["question_type"]] == "Audio / Comparative"


def test_epic_kitchens():
    rows = read_annotations(REAL / "EPIC_100_validation.csv", record("epic_kitchens_100"), "validation")
    assert [row.clip_id for row in rows] == ["P01_11_0", "P01_11_1", "P01_11_10", "P01_11_100", "P01_11_101"]
    row = rows[3]
    assert (row.start, row.end) == (pytest.approx(327.28), pytest.approx(331.97))  # 00:05:27.28 to 00:05:31.97
    assert row.whole == ("P01_11",)
    assert row.values == {"verb": 2, "noun": 17, "narration": "wash cloth"}
    assert read_labels("epic_kitchens_100_verb")[2] == "wash"
    assert read_labels("epic_kitchens_100_noun")[17] == "cloth"


def test_vggsound_test_list():
    rows = read_annotations(REAL / "test.csv", record("vggsound"), "test")
    assert rows[0].clip_id == "glLQrEijrKg_000300"
    assert rows[0].whole == ("glLQrEijrKg",)
    assert (rows[0].start, rows[0].end) == (300.0, 310.0)
    assert [read_labels("vggsound")[row.values["label"]] for row in rows][:2] == [
        "playing hammond organ",
        "parrot talking",
    ]
    other = read_annotations(REAL / "test.csv", record("vggsound", "stat_order"), "test")
    assert read_labels("vggsound_stat_order")[other[0].values["label"]] == "playing hammond organ"
    assert other[0].values != rows[0].values
    with pytest.raises(ValueError, match="no split 'train'"):
        read_annotations(REAL / "test.csv", record("vggsound"), "train")


def test_esc10_folds():
    test = read_annotations(REAL / "esc10.csv", record("esc10", "fold5"), "test")
    train = read_annotations(REAL / "esc10.csv", record("esc10", "fold5"), "train")
    assert [row.values["fold"] for row in test] == [5, 5]
    assert [row.values["fold"] for row in train] == [1] * 5
    assert train[0].clip_id == "1-100032-A-0"
    assert read_labels("esc10")[train[0].values["label"]] == "dog"
    assert train[0].crop == (0.0, 5.0)
    with pytest.raises(ValueError, match="no rows of the split 'test'"):
        read_annotations(REAL / "esc10.csv", record("esc10", "fold3"), "test")


# ---- made-up rows in the published formats


def test_vggsound_list(tmp_path):
    file = written(tmp_path, 'abc,30,air horn,train\n-x_y,0,"bird chirping, tweeting",test\nabc,5,air horn,test\n')
    (train,) = read_annotations(file, record("vggsound"), "train")
    assert (train.clip_id, train.trimmed, train.whole) == ("abc_000030", ("abc_000030",), ("abc",))
    test = read_annotations(file, record("vggsound"), "test")
    assert [read_labels("vggsound")[row.values["label"]] for row in test] == ["bird chirping, tweeting", "air horn"]
    with pytest.raises(ValueError, match=r"rows.csv:1: 'air hron' is not one of the 309 label names of VGGSound"):
        read_annotations(written(tmp_path, "abc,30,air hron,train\n"), record("vggsound"), "train")
    with pytest.raises(ValueError, match=r"rows.csv:2: expected 2 or 4 fields, found 3"):
        read_annotations(written(tmp_path, "abc,30,air horn,train\nabc,30,air horn\n"), record("vggsound"), "train")


@pytest.mark.parametrize("start", ["nan", "inf", "-3"])
def test_invalid_vggsound_starts_raise(tmp_path, start):
    file = written(tmp_path, f"abc,{start},air horn,test\n")
    with pytest.raises(ValueError, match=rf"rows.csv:1: start must be at least 0 s, got {start}"):
        read_annotations(file, record("vggsound"), "test")


def test_kinetics_splits_in_one_file(tmp_path):
    lines = ["label,youtube_id,time_start,time_end,split,is_cc", "abseiling,a,1,11,train,0"]
    lines += ["abseiling,b,1,11,val,0", "abseiling,c,1,11,validate,1", "abseiling,d,1,11,test,0"]
    file = written(tmp_path, "\n".join(lines))
    for split, ids in (("train", "a"), ("validation", "bc")):
        rows = read_annotations(file, record("kinetics400"), split)
        assert "".join(row.whole[0] for row in rows) == ids


def test_music_avqa_fields_must_be_json(tmp_path):
    (question,) = json.loads((REAL / "avqa-val.json").read_text(encoding="utf-8"))[:1]
    for change in ({"templ_values": "ukulele"}, {"type": None}):
        file = written(tmp_path, json.dumps([question | change]), "avqa-val.json")
        with pytest.raises(ValueError, match=r"avqa-val\.json: question 0: templ_values and type must hold JSON lists"):
            read_annotations(file, record("music_avqa"), "validation")


def test_audioset(tmp_path):
    comments = (
        "# Segments csv created\n# num_ytids=1, num_segs=2\n# YTID, start_seconds, end_seconds, positive_labels\n"
    )
    file = written(tmp_path, comments + '--PJ, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n-a, 0.000, 6.500, "/m/0ytgt"\n')
    rows = read_annotations(file, record("audioset"), "train")
    mids = read_labels("audioset_mids")
    assert rows[0].values == {"labels": sorted([mids.index("/m/09x0r"), mids.index("/t/dd00088")])}
    assert (rows[0].clip_id, rows[0].start, rows[0].end) == ("--PJ_30", 30.0, 40.0)
    assert {"--PJ_000030", "--PJ_30"} <= set(rows[0].trimmed)
    assert rows[1].end == 6.5
    with pytest.raises(ValueError, match=r"rows.csv:1: unknown label ids: /m/none"):
        read_annotations(written(tmp_path, 'a, 0, 10, "/m/none,/m/09x0r"\n'), record("audioset"), "train")


def test_kinetics_and_kinetics_sounds(tmp_path):
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    text = header + "abseiling,0347ZoDXyP0,95,105,train,0\nbowling,x_y,4,14,train,0\nstrumming guitar,z,0,10,train,0\n"
    file = written(tmp_path, text)
    rows = read_annotations(file, record("kinetics400"), "train")
    assert [row.values["label"] for row in rows] == [0, 31, read_labels("kinetics400").index("strumming guitar")]
    assert rows[0].trimmed == ("0347ZoDXyP0_000095_000105",)
    for variant, names in (("32", ["bowling", "strumming guitar"]), ("31", ["bowling"])):
        chosen = record("kinetics_sounds", variant)
        rows = read_annotations(file, chosen, "train")
        assert [chosen.label_names("label")[row.values["label"]] for row in rows] == names
    with pytest.raises(ValueError, match="'bowlng' is not one of the 32"):
        read_annotations(written(tmp_path, header + "bowlng,a,0,10,train,0\n"), record("kinetics_sounds"), "train")
    with pytest.raises(ValueError, match="lacks the columns label, youtube_id"):
        read_annotations(written(tmp_path, "name,id,time_start,time_end\n"), record("kinetics400"), "train")


def test_moments(tmp_path):
    rows = read_annotations(
        written(tmp_path, "clapping/flickr-1-2-3.mp4,clapping,3,1\n"), record("moments_in_time"), "train"
    )
    assert rows[0].trimmed == ("clapping/flickr-1-2-3",)
    assert rows[0].values == {"label": 0}


def test_ucf101_lists(tmp_path):
    name = "Archery/v_Archery_g08_c01.avi"
    (row,) = read_annotations(written(tmp_path, f"{name} 3\n"), record("ucf101"), "train")
    assert (row.clip_id, row.values) == ("v_Archery_g08_c01", {"label": 2})
    (row,) = read_annotations(written(tmp_path, f"{name}\n"), record("ucf101"), "test")
    assert row.values == {"label": 2}
    with pytest.raises(ValueError, match="Archery is class 3, not 4"):
        read_annotations(written(tmp_path, f"{name} 4\n"), record("ucf101"), "train")


def test_esc50(tmp_path):
    header = "filename,fold,target,category,esc10,src_file,take\n"
    file = written(
        tmp_path, header + "1-100032-A-0.wav,1,0,dog,True,100032,A\n2-1-A-20.wav,2,20,crying_baby,True,1,A\n"
    )
    assert [row.values for row in read_annotations(file, record("esc50"), "test")] == [{"label": 0, "fold": 1}]
    assert [row.values for row in read_annotations(file, record("esc50"), "train")] == [{"label": 20, "fold": 2}]
    with pytest.raises(ValueError, match="class 1 is rooster, not dog"):
        read_annotations(written(tmp_path, header + "a.wav,1,1,dog,True,1,A\n"), record("esc50"), "test")


def test_charades(tmp_path):
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    text = header + 'A,S,Kitchen,6,7,Yes,"x, y",o,d,c092 11.90 21.20;c147 0.00 12.60;c092 1.00 2.00,33.67\n'
    rows = read_annotations(written(tmp_path, text + "B,S,Kitchen,6,7,Yes,s,o,d,,30.00\n"), record("charades"), "train")
    assert [row.values["labels"] for row in rows] == [[92, 147], []]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.156"):
        read_annotations(written(tmp_path, header + "A,S,K,6,7,Y,s,o,d,c157 0 1,3\n"), record("charades"), "train")


def test_avsbench_s4(tmp_path):
    text = "name,uid,category,split\nv1_0,a,cat_meowing,val\nv2_5,b,ambulance_siren,train\n"
    (row,) = read_annotations(written(tmp_path, text), record("avsbench_s4"), "validation")
    assert (row.clip_id, row.values, row.masks) == ("v1_0", {"label": 3}, "gt_masks/val/cat_meowing/v1_0")
    with pytest.raises(ValueError, match=r"rows.csv:2: unknown split 'dev'"):
        read_annotations(written(tmp_path, text.replace("val", "dev")), record("avsbench_s4"), "train")


def test_repeated_clips_get_distinct_ids(tmp_path):
    file = written(tmp_path, "Bark&x&good&0&4\nMandolin&x&good&4&9\nBark&y&good&0&1\n")
    rows = read_annotations(file, record("ave"), "train")
    assert [row.clip_id for row in rows] == ["x", "x#2", "y"]
    assert [row.trimmed for row in rows] == [("x",), ("x",), ("y",)]
    with pytest.raises(ValueError, match="within 10 s, got 4 to 11"):
        read_annotations(written(tmp_path, "Bark&x&good&4&11\n"), record("ave"), "train")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        read_annotations(tmp_path / "binary", record("ave"), "train")


def test_every_parser_is_used_by_a_benchmark():
    records = [item for one in BENCHMARKS.values() for item in (one, *map(one.variant, one.variants))]
    assert {item.parser for item in records} - {""} == set(PARSERS)


# ---- whole official files


@pytest.mark.parametrize(
    ("split", "file"), [("train", "ave_trainSet"), ("validation", "ave_valSet"), ("test", "ave_testSet")]
)
def test_all_rows_of_ave(shared, split, file):
    rows = read_annotations(shared / f"benchmarks/annotations/{file}.txt", record("ave"), split)
    assert len(rows) == BENCHMARKS["ave"].splits[split] == len({row.clip_id for row in rows})


def test_all_ave_annotations_have_the_published_counts(shared):
    facts = json.loads((shared / "benchmarks/ave.json").read_text())
    rows = read_annotations(shared / "benchmarks/annotations/ave_Annotations.txt", record("ave"), "train")
    assert len(rows) == facts["annotations"]
    assert len({row.trimmed for row in rows}) == facts["unique_videos"]
    counts = Counter(read_labels("ave")[row.values["label"]] for row in rows)
    assert counts == facts["clips_per_class"]


def test_all_rows_of_ogmge_and_music_avqa(shared):
    folder = shared / "benchmarks/annotations"
    ogmge = record("kinetics_sounds", "31_ogmge")
    rows = read_annotations(folder / "kinetics_sounds_ogmge_test.txt", ogmge, "test")
    assert len(rows) == ogmge.splits["test"]
    assert {row.values["label"] for row in rows} == set(range(31))
    rows = read_annotations(folder / "music_avqa_val.json", record("music_avqa"), "validation")
    assert len(rows) == BENCHMARKS["music_avqa"].splits["validation"] == len({row.clip_id for row in rows})
    types = read_labels("music_avqa_question_types")
    facts = json.loads((shared / "benchmarks/music_avqa.json").read_text())
    assert Counter(types[row.values["question_type"]] for row in rows) == facts["question_types"]["val"]
    assert not any("<" in row.values["question"] for row in rows)


@pytest.mark.parametrize("fold", range(1, 6))
def test_all_rows_of_esc10(shared, fold):
    splits = {
        split: read_annotations(shared / "esc10/esc10.csv", record("esc10", f"fold{fold}"), split)
        for split in ("train", "test")
    }
    assert {split: len(rows) for split, rows in splits.items()} == BENCHMARKS["esc10"].splits
    assert set(Counter(row.values["label"] for row in splits["test"]).values()) == {8}


def test_label_files_match_the_official_lists(shared):
    """The gathered facts, which test_records.py compares, were made from the same official files."""
    folder = shared / "benchmarks/annotations"

    def column(name, key):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            return [row[key] for row in csv.DictReader(file)]

    assert column("audioset_class_labels_indices.csv", "display_name") == list(read_labels("audioset"))
    assert column("audioset_class_labels_indices.csv", "mid") == list(read_labels("audioset_mids"))
    assert column("audioset_class_labels_indices.csv", "index") == [str(index) for index in range(527)]
    for kind in ("verb", "noun"):
        assert column(f"EPIC_100_{kind}_classes.csv", "key") == list(read_labels(f"epic_kitchens_100_{kind}"))
    with (folder / "vggsound_stat.csv").open(newline="", encoding="utf-8") as file:
        names = [row[0] for row in csv.reader(file)]
    assert names == list(read_labels("vggsound_stat_order"))
    assert sorted(names) == list(read_labels("vggsound"))


def test_ave_and_music_avqa_rows_match_their_records(shared):
    """Events are the clip's class or background, in ten 1 s segments; all answers and question types are known."""
    folder, ave = shared / "benchmarks/annotations", record("ave")
    background, seen, ids = 28, set(), []
    for split, file in (("train", "ave_trainSet"), ("validation", "ave_valSet"), ("test", "ave_testSet")):
        for row in read_annotations(folder / f"{file}.txt", ave, split):
            assert len(row.values["events"]) == 10
            assert set(row.values["events"]) <= {row.values["label"], background}
            seen.add(row.values["label"])
            ids.append((row.trimmed[0], tuple(row.values["events"]), row.values["label"]))
    assert seen == set(range(28))
    assert len(ids) == sum(ave.splits.values()) == 4143
    rows = read_annotations(folder / "music_avqa_val.json", record("music_avqa"), "validation")
    assert {row.values["question_type"] for row in rows} == set(range(9))
    assert {row.values["answer"] for row in rows} <= set(range(42))
    official = json.loads((folder / "music_avqa_val.json").read_text(encoding="utf-8"))
    answers = read_labels("music_avqa_answers")
    kept = [question for question in official if not question["question_deleted"]]
    assert [answers[row.values["answer"]] for row in rows] == [question["anser"] for question in kept]
    for row, question in zip(rows, kept):
        for filler in json.loads(question["templ_values"]):
            assert filler in row.values["question"]


def test_stray_quotes_and_absurd_times_are_refused(tmp_path):
    file = tmp_path / "rows.csv"
    names = list(BENCHMARKS["vggsound"].label_names("label"))[:1] * 30
    rows = [f"video{number:06d},1,{name},train" for number, name in enumerate(names)]
    for wrong, message in (
        (rows[3].replace("1,", '1,"', 1), r"rows.csv:30: unexpected end of data"),
        (f'"{rows[3]}\nvideo"{rows[4][5:]}', r"rows.csv:\d+: .*quotes"),
        (rows[3].replace(",1,", ",1e308,"), r"rows.csv:4: start"),
    ):
        file.write_text("\n".join([*rows[:3], wrong, *rows[4:]]))
        with pytest.raises(ValueError, match=message):
            read_annotations(file, record("vggsound"), "train")
