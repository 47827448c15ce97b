"""Reports on hand-written evaluations: means and deviations, tables, data of figures, and files."""

import csv
import json
import math
import os
from statistics import stdev

import pytest

from hf_avfusion.data.benchmarks.records import BENCHMARKS
from hf_avfusion.evaluation import figures as figures_module
from hf_avfusion.evaluation import reports, tables
from hf_avfusion.evaluation.clips import EvaluationSet
from hf_avfusion.evaluation.figures import figures
from hf_avfusion.evaluation.reports import check_same, make_results, read_results, write_report
from hf_avfusion.evaluation.summaries import headline, summarise
from hf_avfusion.evaluation.tables import markdown
from hf_avfusion.tasks import TASKS

CLASSES = {"label": ("dog", "cat", "costs $5 | or $6", "never there")}
CLIPS = EvaluationSet(
    name="vggsound", title="VGGSound", split="test", source="clips/", rows=None, num_rows=20,
    coverage={"present": 20, "expected": 22, "vanished": 2}, record=BENCHMARKS["vggsound"], columns=("label",),
    names={"label": CLASSES["label"]}, task=TASKS["classification"], fields={},
)  # fmt: skip
SETTINGS = {
    "model_type": "mbt", "fusion": "bottleneck", "fusion_layer": 8, "share_encoder": False, "num_hidden_layers": 12,
    "hidden_size": 768, "modalities": ["audio", "video"], "trained_span": 8.0, "trained_synchronous": True,
}  # fmt: skip
PRECISIONS = {"av": [0.9, 0.6, 0.5], "a": [0.5, 0.7, 0.5], "v": [0.3, 0.2, 0.1]}


def evaluation(checkpoint, top1, given="av", shift=0.0, span=8.0, sampling="spread", **settings):
    precision = [*(value + shift for value in PRECISIONS[given]), math.nan]
    return {
        "checkpoint": checkpoint, "revision": None, "settings": {**SETTINGS, **settings}, "given": given, "span": span,
        "sampling": sampling, "views": 4, "crops": 1, "aggregation": "mean_logits", "seed": 0, "clips": 18, "skipped": 2,
        "lacking": 0, "metrics": {"top1": top1, "top5": 1.0},
        "per_class": {"label": {"average_precision": precision, "positives": [8, 6, 4, 0]}},
    }  # fmt: skip


def all_given(checkpoint, top1, **options):
    return [evaluation(checkpoint, top1 - 0.1 * number, given, **options) for number, given in enumerate(PRECISIONS)]


def rows_of(results, name, top=30):
    return figures(results, top)[name][0]


def test_mean_and_deviation_of_runs():
    both, audio, late = summarise(
        [
            evaluation("a", 0.5), evaluation("a", 0.2, "a"), evaluation("b", 0.6), evaluation("c", 0.7),
            evaluation("d", 0.4, fusion_layer=12),
        ]
    )  # fmt: skip
    assert both["runs"] == ["a", "b", "c"]
    # (0.5 + 0.6 + 0.7) / 3, and the square root of ((0.1^2 + 0 + 0.1^2) / 2)
    assert both["metrics"]["top1"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.1), "n": 3}
    assert both["metrics"]["top5"] == {"mean": 1.0, "std": 0.0, "n": 3}
    assert (both["clips"], both["skipped"], both["n"]) == ([18, 18, 18], [2, 2, 2], 3)
    # One run has no deviation, and runs with different training are not averaged.
    assert (audio["given"], audio["metrics"]["top1"]) == ("a", {"mean": 0.2, "std": None, "n": 1})
    assert (late["settings"]["fusion_layer"], late["n"]) == (12, 1)


def test_runs_under_other_conditions_are_not_averaged():
    rows = summarise([evaluation("a", 0.5), evaluation("b", 0.6, span=4.0), evaluation("c", 0.7, sampling="sync")])
    assert [row["n"] for row in rows] == [1, 1, 1]


def test_a_checkpoint_counts_once(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    first = evaluation(str(tmp_path), 0.5)
    with pytest.raises(
        ValueError, match=r"link: the same checkpoint twice under the same condition \(audio and video, 8 s"
    ):
        make_results(CLIPS, CLASSES, [first, evaluation(str(tmp_path / "link"), 0.5)], 0)
    # Evenly spaced windows do not depend on the seed, so another seed gives the same evaluation.
    with pytest.raises(ValueError, match="evenly spaced, 4 views"):
        make_results(CLIPS, CLASSES, [first, {**first, "seed": 1}], 0)
    random = evaluation(str(tmp_path), 0.5, sampling="sync")
    assert make_results(CLIPS, CLASSES, [random, {**random, "seed": 1}], 0)["summary"][0]["n"] == 2
    with pytest.raises(ValueError, match="random, 4 views, seed 0"):
        make_results(CLIPS, CLASSES, [random, random], 0)


def test_headlines():
    task = TASKS["classification"]
    assert headline(TASKS["event_localization"], {"accuracy": 0.5}) == "accuracy"
    assert headline(task, {"auc": 0.9, "map": 0.4}) == "map"
    assert headline(task, {"top1_verb": 0.9, "top1_action": 0.4}) == "top1_action"
    assert headline(task, {"top1_shape": 0.9, "top1_joint": 0.4}) == "top1_joint"
    assert headline(task, {"top5": 0.9, "top1": 0.4}) == "top1"
    assert headline(task, {"other": 0.9, "more": 0.4}) == "other"
    assert headline(task, {}) is None


def test_table():
    results = make_results(CLIPS, CLASSES, [*all_given("a", 0.5), *all_given("b", 0.75)], seed=3)
    text = markdown(results)
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert cells[0] == [
        "given", "span of the frames", "windows", "views", "clips", "runs", "top-1 (%)", "top-5 (%)"
    ]  # fmt: skip
    assert cells[2] == [
        "audio and video", "8 s", "evenly spaced", "4", "18 (2 skipped)", "2", "62.50 ± 17.68", "100.00 ± 0.00"
    ]  # fmt: skip
    assert [row[0] for row in cells[3:]] == ["audio only", "video only"]
    assert len({len(row) for row in cells}) == 1
    assert "20 of 22 clips; 2 annotated clips are missing" in text
    assert "MBT, bottleneck-fusion" not in text
    assert "MBT, bottleneck fusion from layer 8 of 12, separate encoders, frames over 8 s" in text
    assert "Seed 3" in text

    several = markdown(make_results(CLIPS, CLASSES, [evaluation("a", 0.5), evaluation("b", 0.5, fusion_layer=12)], 0))
    assert "late fusion, separate encoders" in several


def test_names_of_metrics():
    show = TASKS["classification"].show_metric
    assert tables.metric_text(show("top1_verb")) == "top-1 verb (%)"
    assert tables.metric_text(show("d_prime")) == "d-prime"
    assert tables.axis_text(show("top1_joint")) == "top-1 accuracy, all heads together (%)"
    assert tables.axis_text(show("map")) == "mAP (%)"
    assert tables.metric_value(show("map"), {"mean": 0.4392, "std": 0.0026}) == "43.92 ± 0.26"
    assert tables.metric_value(show("d_prime"), {"mean": 2.5, "std": None}) == "2.500"
    assert tables.metric_value(show("classes_without_positives"), {"mean": 3, "std": 0.0}) == "3 ± 0.0"
    assert tables.metric_text(TASKS["event_localization"].show_metric("accuracy")) == "accuracy of segments (%)"


def test_precision_of_classes_and_gain():
    results = make_results(CLIPS, CLASSES, [*all_given("a", 0.5), *all_given("b", 0.6, shift=0.1)], 0)
    rows = rows_of(results, "per_class_ap")
    assert [row["class"] for row in rows] == ["dog", "cat", "costs $5 | or $6"]  # best first, without the class "none"
    assert rows[0]["positives"] == 8
    assert rows[0]["ap_av"] == pytest.approx((0.9 + 1.0) / 2)
    assert rows[0]["ap_av_std"] == pytest.approx(stdev([0.9, 1.0]))
    gains = rows_of(results, "fusion_gain")
    assert [row["gain_over_a"] for row in gains] == pytest.approx([0.4, -0.1, 0.0])
    assert [row["gain_over_v"] for row in gains] == pytest.approx([0.6, 0.4, 0.4])
    # Without an evaluation of both modalities there is no gain.
    alone = make_results(CLIPS, CLASSES, [evaluation("a", 0.5, "a")], 0)
    assert rows_of(alone, "fusion_gain") == []
    assert rows_of(alone, "per_class_ap")[0]["class"] == "cat"


def test_precision_of_classes_uses_only_the_default_condition():
    other = evaluation("a", 0.5, shift=-0.3, span=2.0), evaluation("a", 0.5, shift=-0.2, sampling="async")
    results = make_results(CLIPS, CLASSES, [evaluation("a", 0.5), *other], 0)
    assert rows_of(results, "per_class_ap")[0]["ap_av"] == 0.9


def test_sweeps_of_one_model():
    evaluations = [
        *all_given("a", 0.5), *all_given("a", 0.4, span=2.0), *all_given("a", 0.45, span=4.0),
        evaluation("a", 0.3, sampling="sync"), evaluation("a", 0.2, sampling="async"),
    ]  # fmt: skip
    results = make_results(CLIPS, CLASSES, evaluations, 0)
    spans = rows_of(results, "span_sweep")
    assert [(row["given"], row["span_s"]) for row in spans][:3] == [("av", 2.0), ("av", 4.0), ("av", 8.0)]
    assert [row["top1"] for row in spans][:3] == pytest.approx([0.4, 0.45, 0.5])
    assert [(row["windows"], row["top1"]) for row in rows_of(results, "sampling")] == [("sync", 0.3), ("async", 0.2)]
    # These figures need several models.
    assert not any(rows_of(results, name) for name in ("weight_sharing", "trained_span", "trained_sampling"))


def test_figures_of_models_with_different_training():
    evaluations = [
        evaluation("a", 0.5), evaluation("b", 0.7), evaluation("c", 0.4, share_encoder=True),
        evaluation("d", 0.3, fusion_layer=12), evaluation("e", 0.2, fusion_layer=12, share_encoder=True),
    ]  # fmt: skip
    results = make_results(CLIPS, CLASSES, evaluations, 0)
    rows = rows_of(results, "weight_sharing")
    assert [(row["share_encoder"], row["fusion_layer"], row["runs"]) for row in rows] == [
        (False, 8, 2), (False, 12, 1), (True, 8, 1), (True, 12, 1)
    ]  # fmt: skip
    assert rows[0]["top1"] == pytest.approx(0.6)
    # Models with other settings are not part of the line, in any order.
    wider = evaluation("f", 0.9, fusion_layer=4, hidden_size=1024)
    for mixed in ([*evaluations, wider], [wider, *evaluations]):
        assert rows_of(make_results(CLIPS, CLASSES, mixed, 0), "weight_sharing") == rows
    assert rows_of(make_results(CLIPS, CLASSES, [wider, evaluations[0]], 0), "weight_sharing") == []

    evaluations = [
        evaluation("a", 0.5), evaluation("b", 0.4, span=2.0, trained_span=2.0),
        evaluation("c", 0.6, trained_synchronous=False),
    ]  # fmt: skip
    for order in (evaluations, evaluations[::-1], [evaluations[1], evaluations[0], evaluations[2]]):
        results = make_results(CLIPS, CLASSES, order, 0)
        assert [(row["span_s"], row["top1"]) for row in rows_of(results, "trained_span")] == [(2.0, 0.4), (8.0, 0.5)]
        trained = rows_of(results, "trained_sampling")
        assert sorted((row["windows"], row["top1"]) for row in trained) == [("async", 0.6), ("sync", 0.5)]


def test_audio_and_frames_may_grow_with_the_span():
    def spans(*evaluations):
        results = make_results(CLIPS, CLASSES, evaluations, 0)
        return [(row["span_s"], row["top1"]) for row in rows_of(results, "trained_span")]

    short = evaluation("a", 0.4, span=2.0, trained_span=2.0, num_frames=8, spectrogram_length=200)
    longer_audio = evaluation("b", 0.5, num_frames=8, spectrogram_length=800)
    more_frames = evaluation("c", 0.6, num_frames=32, spectrogram_length=800)
    assert spans(short, longer_audio) == [(2.0, 0.4), (8.0, 0.5)]
    assert spans(short, more_frames) == [(2.0, 0.4), (8.0, 0.6)]
    assert spans(short, longer_audio, more_frames) == [(2.0, 0.4), (8.0, 0.5)]  # one model for each span
    assert spans(longer_audio, more_frames) == []


def test_the_table_names_settings_that_differ():
    made = [
        evaluation("a", 0.5, num_bottleneck_tokens=4, patch_size=[16, 16]),
        evaluation("b", 0.7, num_bottleneck_tokens=64, patch_size=[16, 16]),
        evaluation("c", 0.6, num_bottleneck_tokens=64, patch_size=[16, 16]),
        evaluation("d", 0.6, num_bottleneck_tokens=64, patch_size=[8, 8], fusion_layer=12),
    ]
    results = make_results(CLIPS, CLASSES, made, 0)
    assert [row["n"] for row in results["summary"]] == [1, 2, 1]
    model = "| MBT, bottleneck fusion from layer 8 of 12, separate encoders, frames over 8 s, num_bottleneck_tokens"
    assert [line for line in markdown(results).splitlines() if line.startswith(f"{model} 4 ")]
    assert [line for line in markdown(results).splitlines() if line.startswith(f"{model} 64 ")]
    assert "patch_size" not in markdown(results)
    strategy = {**SETTINGS, "model_type": "avmae", "fusion": None, "encoder_strategy": "mid_fusion"}
    assert tables.settings_text(strategy) == "AVMAE, mid fusion encoding"


def test_titles_of_figures_state_the_number_of_runs(tmp_path, monkeypatch):
    titles = {}

    def keep(path, *arguments, title, **options):
        titles[path.name.removesuffix(".png.partial")] = title
        path.touch()

    for name in ("draw_bars", "draw_ranked_bars", "draw_lines", "draw_columns"):
        monkeypatch.setattr(figures_module, name, keep)
    evaluations = [
        evaluation("a", 0.5), evaluation("b", 0.7), evaluation("c", 0.4, share_encoder=True),
        *(evaluation(name, 0.5, trained_synchronous=False) for name in "de"),
        *(evaluation(name, 0.5, span=2.0, trained_span=2.0) for name in "fg"),
    ]  # fmt: skip
    write_report(make_results(CLIPS, CLASSES, evaluations, 0), tmp_path)
    model = "VGGSound test: MBT, bottleneck fusion from layer 8 of 12, separate encoders"
    lines = "lines: ± standard deviation\ngiven audio and video"
    assert titles["trained_span"] == f"{model}, a model for each span\nmean of 2 runs, {lines}"
    assert titles["trained_sampling"] == f"{model}, a model for each sampling\nmean of 2 runs, {lines}"
    sharing = "VGGSound test: MBT, frames over 8 s, weight sharing by fusion layer"
    assert titles["weight_sharing"] == f"{sharing}\nmean of 1 to 2 runs, {lines}"


def test_coverage_of_a_hub_repository_counts_evaluated_clips():
    unknown = EvaluationSet(**{**vars(CLIPS), "coverage": {"present": None, "expected": 22, "vanished": None}})
    assert "Coverage" not in markdown(make_results(unknown, CLASSES, [], 0))
    results = make_results(unknown, CLASSES, all_given("a", 0.5), 0)
    assert results["benchmark"]["coverage"] == {"present": 20, "expected": 22, "vanished": None}
    assert "Coverage: 20 of 22 clips." in markdown(results)


def test_evaluations_with_other_views_are_only_in_the_table():
    other = {**evaluation("b", 0.9, shift=0.1), "views": 1}
    results = make_results(CLIPS, CLASSES, [evaluation("a", 0.5), other], 0)
    assert [row["views"] for row in results["summary"]] == [4, 1]
    assert rows_of(results, "per_class_ap")[0]["ap_av_n"] == 1


def test_files(tmp_path):
    evaluations = [*all_given("a", 0.5), *all_given("b", 0.6, shift=0.05), *all_given("a", 0.4, span=2.0)]
    evaluations += [evaluation("a", 0.5, sampling="sync"), evaluation("a", 0.4, sampling="async")]
    evaluations.append(evaluation("c", 0.4, share_encoder=True))
    results = make_results(CLIPS, CLASSES, evaluations, 0)
    written = write_report(results, tmp_path / "new" / "report", top_classes=2)
    names = ["per_class_ap", "fusion_gain", "span_sweep", "sampling", "weight_sharing"]
    expected = ["results.json", "table.md", *(f"{name}.{kind}" for name in names for kind in ("csv", "png"))]
    assert [path.name for path in written] == expected
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == sorted(expected)
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "new" / "report" / "per_class_ap.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["dog", "cat", "costs $5 | or $6"]  # the CSV holds all classes
    assert float(rows[1]["ap_a"]) == pytest.approx(0.725)
    assert {"versions", "commit", "seed", "created"} <= set(results)

    # Another report in the same folder deletes the figures of this one.
    (tmp_path / "new" / "report" / "span_sweep.txt").write_text("my notes")
    write_report(make_results(CLIPS, CLASSES, [evaluation("d", 0.5, "a")], 0), tmp_path / "new" / "report")
    left = sorted(path.name for path in (tmp_path / "new" / "report").iterdir())
    assert left == ["per_class_ap.csv", "per_class_ap.png", "results.json", "span_sweep.txt", "table.md"]


def test_results_are_read_back_unchanged(tmp_path):
    perfect = evaluation("a", 0.5)
    perfect["metrics"] = {"map": 0.5, "d_prime": math.inf}
    write_report(make_results(CLIPS, CLASSES, [perfect], 0), tmp_path)

    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    text = (tmp_path / "results.json").read_text()
    json.loads(text, parse_constant=refuse)
    again = read_results(tmp_path)
    assert again == read_results(tmp_path / "results.json")
    (back,) = again["evaluations"]
    assert back["metrics"] == {"map": 0.5, "d_prime": math.inf}
    assert math.isnan(back["per_class"]["label"]["average_precision"][3])
    check_same(again, "results.json", CLIPS, CLASSES)
    # They are averaged with a new run.
    new = evaluation("b", 0.7)
    new["metrics"] = {"map": 0.7, "d_prime": 2.0}
    (row,) = make_results(CLIPS, CLASSES, [back, new], 0)["summary"]
    assert row["n"] == 2
    assert row["metrics"]["map"]["mean"] == pytest.approx(0.6)
    assert math.isnan(row["metrics"]["d_prime"]["std"])
    with pytest.raises(ValueError, match="its split is 'test', here it is 'train'"):
        check_same(again, "results.json", EvaluationSet(**{**vars(CLIPS), "split": "train"}), CLASSES)
    with pytest.raises(ValueError, match="other heads or classes"):
        check_same(again, "results.json", CLIPS, {"label": CLASSES["label"][::-1]})


def test_folds_of_a_benchmark_are_averaged_and_named():
    esc50 = {**vars(CLIPS), "name": "esc50", "title": "ESC-50", "record": BENCHMARKS["esc50"]}

    def fold(number):
        name = f"fold{number}"
        return EvaluationSet(**{**esc50, "variant": name, "record": BENCHMARKS["esc50"].variant(name)})

    assert EvaluationSet(**esc50).partition == "fold1"
    assert CLIPS.partition is None
    first = make_results(fold(1), CLASSES, [{**evaluation("a", 0.5), "partition": "fold1"}], 0)
    check_same(first, "results.json", fold(3), CLASSES)
    both = [*first["evaluations"], {**evaluation("b", 0.75), "partition": "fold3"}]
    results = make_results(fold(3), CLASSES, both, 0)
    assert results["summary"][0]["metrics"]["top1"] == {"mean": 0.625, "std": pytest.approx(0.25 / 2**0.5), "n": 2}
    assert "Mean over the test clips of fold1, fold3." in markdown(results)
    assert "Coverage of fold3: 20 of 22 clips" in markdown(results)
    assert "Only fold1." in markdown(first)
    with pytest.raises(ValueError, match="the same checkpoint twice"):  # its training clips include other test folds
        make_results(fold(3), CLASSES, [both[0], {**both[0], "partition": "fold3"}], 0)
    about = {**CLIPS.describe(), "variant": "mini"}
    with pytest.raises(ValueError, match=r"other clips: its variant is 'mini', here it is None"):
        check_same({"benchmark": about, "classes": {}}, "results.json", CLIPS, CLASSES)


def test_errors_for_files_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"benchmark": {}}')
    with pytest.raises(ValueError, match="has no classes, evaluations"):
        read_results(tmp_path)
    with pytest.raises(ValueError, match="top_classes"):
        write_report(make_results(CLIPS, CLASSES, [evaluation("a", 0.5)], 0), tmp_path, top_classes=0)


def test_a_failed_report_keeps_the_old_one(tmp_path, monkeypatch):
    write_report(make_results(CLIPS, CLASSES, [evaluation("a", 0.5)], 0), tmp_path)
    before = (tmp_path / "results.json").read_bytes()

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(make_results(CLIPS, CLASSES, [evaluation("a", 0.9)], 0), tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before


def test_the_commit_is_that_of_this_repository(monkeypatch):
    import subprocess

    found = reports.commit()
    assert found is None or len(found.removesuffix("+changes")) == 40

    def gone(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", gone)
    assert reports.commit() is None


@pytest.mark.parametrize(("segments", "heading"), [(None, "accuracy"), (10, "accuracy of segments (%)")])
def test_results_of_earlier_versions_do_not_name_their_task(tmp_path, segments, heading):
    results = make_results(CLIPS, CLASSES, [{**evaluation("a", 0.5), "metrics": {"accuracy": 0.5}}], 0)
    assert results["benchmark"]["num_segments"] is None  # a key of earlier files stays
    del results["benchmark"]["task"]
    results["benchmark"]["num_segments"] = segments
    (tmp_path / "results.json").write_text(json.dumps(reports.plain(results)))
    written = write_report(read_results(tmp_path), tmp_path / "report")
    assert f"| {heading} " in written[1].read_text()


def test_results_of_an_unknown_task_are_refused(tmp_path):
    results = make_results(CLIPS, CLASSES, [evaluation("a", 0.5)], 0)
    results["benchmark"]["task"] = "juggling"
    (tmp_path / "results.json").write_text(json.dumps(reports.plain(results)))
    with pytest.raises(
        ValueError, match=r"results\.json: the results are of the task 'juggling', .*: the tasks are event_"
    ):
        read_results(tmp_path)
