"""The facts about each benchmark: one record each, with label names in files under `labels/`.

Counts, formats and label orders come from the sources that a record lists in `sources`. Facts that were not checked
against a source are listed in `uncertain` and must not be quoted as official.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

LABELS = Path(__file__).parent / "labels"


@cache
def read_labels(name: str) -> tuple[str, ...]:
    """Returns the label names in `labels/<name>.txt` in index order. Published files never change."""
    return tuple((LABELS / f"{name}.txt").read_text(encoding="utf-8").splitlines())


@cache
def label_indices(name: str) -> Mapping[str, int]:
    """Maps the label names in `labels/<name>.txt` to their indices."""
    return {label: index for index, label in enumerate(read_labels(name))}


@dataclass(frozen=True)
class HubRepository:
    """A Hub dataset that is said to contain a benchmark. `verified`: this package loaded and compared its rows."""

    id: str
    verified: bool
    note: str


@dataclass(frozen=True)
class Benchmark:
    """Facts about one benchmark, or one variant of it.

    Args:
        name: key in `BENCHMARKS`.
        title: the authors' spelling of the name.
        task: "classification", "event localization", ...
        columns: the annotation columns (in addition to clip_id, video, start, end) -> their kind: "class" (one label),
            "classes" (a list: several labels, or one per second), "images" (a list of PNG), "text", "integer".
        label_columns: the columns that can be the label of a clip, the usual one first.
        labels: column -> file in `labels/`; for a class column without a file, the shards store the names.
        metric: the metric reported for the benchmark.
        splits: name -> expected number of rows, None if it depends on the rendering or is unknown.
        clip_seconds: length of a clip in seconds, None if it varies.
        has_video: whether the clips have a video track.
        license, citation: of the data, not of this package.
        sources: sources of the facts and of the label order.
        parser: name of the function in `annotations.PARSERS` that reads the official annotation file; "" if the clips
            exist only as shards.
        annotations: split -> official annotation file.
        annotation_columns: columns of that file, in order.
        options: additional settings of the parser, such as the test fold.
        question_words: file in `labels/` with the words of the questions, in the order of their indices, the padding first; "" if
            they are read from the training rows.
        hub_ids: repositories on the Hub that are said to contain the benchmark.
        obtain: how to get the data without a Hub repository.
        notes: pitfalls and rules.
        uncertain: statements that were not checked against a source.
        variants: name -> fields that differ; the first variant is the record itself.
        partitions: whether the variants are different divisions of the same clips into train and test, so that the
            scores of the models trained on them are averaged.
    """

    name: str
    title: str
    task: str
    columns: Mapping[str, str]
    label_columns: tuple[str, ...]
    metric: str
    splits: Mapping[str, int | None]
    clip_seconds: float | None
    license: str
    citation: str
    labels: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    parser: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    annotation_columns: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    question_words: str = ""
    hub_ids: tuple[HubRepository, ...] = ()
    obtain: str = ""
    notes: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    partitions: bool = False
    has_video: bool = True

    @property
    def has_questions(self) -> bool:
        """Whether a row is a question about a video, of which there may be several. Shards then hold a row for each video."""
        return self.task == "question answering"

    def label_names(self, column: str) -> tuple[str, ...] | None:
        """Returns the names of a class column in index order; None if only the shards store them."""
        return read_labels(self.labels[column]) if column in self.labels else None

    def variant(self, name: str | None) -> Benchmark:
        """Returns the record of a variant; None is the first variant.

        Raises:
            ValueError: the benchmark has no variant of this name.
        """
        if name is None:
            return self
        if name not in self.variants:
            known = ", ".join(self.variants) or "none"
            raise ValueError(f"{self.title} has no variant {name!r}; its variants are: {known}")
        return dataclasses.replace(self, **self.variants[name])

    def partition(self, variant: str | None) -> str | None:
        """Returns the variant's name (None: the first) if the variants are `partitions`; otherwise None."""
        return (variant or next(iter(self.variants))) if self.partitions else None


_CLIPS = "official clips vanish from YouTube over time: "
_KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
_KINETICS_FILES = {"train": "train.csv", "validation": "validate.csv"}
_ESC_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
_ESC10_COLUMNS = (
    *("filename", "fold", "esc10_target", "category", "esc50_target", "esc10_folder_name", "freesound_id", "take"),
    *("author", "source_url", "clip_licence"),
)
_FOLDS = {f"fold{fold}": {"options": {"test_fold": fold}} for fold in range(1, 6)}

_RECORDS = (
    Benchmark(
        name="vggsound",
        title="VGGSound",
        task="classification",
        columns={"label": "class"},
        label_columns=("label",),
        labels={"label": "vggsound"},
        metric="top-1 and top-5 accuracy",
        splits={"train": None, "test": 15446},
        clip_seconds=10.0,
        license="CC BY 4.0 (the list of clips); the videos belong to their uploaders",
        citation="Chen, Xie, Vedaldi, Zisserman: VGGSound: A Large-scale Audio-Visual Dataset. ICASSP 2020",
        sources=(
            "hche11/VGGSound@9bbc7491c0:data/stat.csv",
            "hche11/VGGSound@9bbc7491c0:datasets/dataloader.py (sorts the names)",
        ),
        parser="vggsound",
        annotations={"train": "vggsound.csv", "test": "vggsound.csv"},
        annotation_columns=("YouTube ID", "start seconds", "label", "train/test split"),
        hub_ids=(
            HubRepository("Loie/VGGSound", False, "seen: 20 tar.gz and vggsound.csv; archive 08 reported corrupted"),
            HubRepository("harpreetsahota/VGGSound-1000", False, "seen: a subset of 1,000 clips in FiftyOne format"),
            HubRepository("lenghanz/VGGSound", False, "seen named only; its content was not looked at"),
        ),
        obtain="pass source= a folder with the clips (<id>_<start, 6 digits>.mp4) and the official vggsound.csv",
        notes=(
            "two label orders are in use: the official one, sorted by name, and that of stat.csv (variant stat_order)",
            "CAV-MAE's label file keeps the order of stat.csv and appends a dummy, so its heads have 309 or 310 outputs",
            "names are kept as published, misspellings included",
            _CLIPS + "MMT had 159,223 train and 12,790 test clips, AV-MAE 172,427 train clips",
        ),
        uncertain=("rows of vggsound.csv: about 199k to 200k over both splits, as forks report",),
        variants={
            "official": {},
            "stat_order": {
                "labels": {"label": "vggsound_stat_order"},
                "sources": (
                    "hche11/VGGSound@9bbc7491c0:data/stat.csv",
                    "Bizilizi/DeepAVFusion@e1fced4b3f:class_labels_indices_vgg.csv",
                ),
            },
        },
    ),
    Benchmark(
        name="audioset",
        title="AudioSet",
        task="multi-label classification",
        columns={"labels": "classes"},
        label_columns=("labels",),
        labels={"labels": "audioset"},
        metric="mAP (macro average over 527 classes); also AUC and d-prime",
        splits={"train": 22160, "eval": 20371},
        clip_seconds=10.0,
        license="labels CC BY 4.0, ontology CC BY-SA 4.0; the videos belong to their uploaders",
        citation="Gemmeke et al.: Audio Set: An ontology and human-labeled dataset for audio events. ICASSP 2017",
        sources=(
            "YuanGongND/cav-mae@68fe8c2a39:src/preprocess/sample_datafiles/class_labels_indices_as.csv",
            "facebookresearch/AVID-CMA@4538e404c7:datasets/cache/audioset/class_labels_indices.csv (identical)",
        ),
        parser="audioset",
        annotations={"train": "balanced_train_segments.csv", "eval": "eval_segments.csv"},
        annotation_columns=("YTID", "start_seconds", "end_seconds", "positive_labels"),
        hub_ids=(
            HubRepository("agkphysics/AudioSet", False, "seen: sound only, no video; 18.7k balanced, 17.1k eval rows"),
            HubRepository("yangwang825/audioset", False, "seen: metadata"),
            HubRepository("confit/audioset", False, "seen"),
        ),
        obtain="pass source= a folder with the clips and the official segments csv",
        notes=(
            _CLIPS + "MBT had 20,361 balanced and 18,589 eval clips",
            "balanced and mini are one: MBT's mini-AudioSet",
        ),
        uncertain=("the numbers of rows of the segments csv (22,160, 2,041,789 and 20,371) are from memory",),
        variants={
            "balanced": {},
            "mini": {},
            "as500k": {
                "splits": {"train": 508994, "eval": 20371},
                "annotations": {"train": "as500k_train_segments.csv", "eval": "eval_segments.csv"},
                "obtain": "MBT's id list was not published: select clips of the same kind with `python -m"
                " hf_avfusion.data.benchmarks.selection unbalanced_train_segments.csv as500k_train_segments.csv`",
            },
            "full": {
                "splits": {"train": 2041789, "eval": 20371},
                "annotations": {"train": "unbalanced_train_segments.csv", "eval": "eval_segments.csv"},
            },
        },
    ),
    Benchmark(
        name="kinetics400",
        title="Kinetics-400",
        task="classification",
        columns={"label": "class"},
        label_columns=("label",),
        labels={"label": "kinetics400"},
        metric="top-1 and top-5 accuracy",
        splits={"train": None, "validation": None},
        clip_seconds=10.0,
        license="videos belong to their uploaders; annotations see uncertain",
        citation="Kay et al.: The Kinetics Human Action Video Dataset. arXiv:1705.06950, 2017",
        sources=(
            "google-deepmind/kinetics-i3d@0667e889a5:data/label_map.txt",
            "open-mmlab/mmaction2@4d6c934747:tools/data/kinetics/label_map_k400.txt (identical)",
        ),
        parser="kinetics",
        annotations=_KINETICS_FILES,
        annotation_columns=_KINETICS_COLUMNS,
        hub_ids=(HubRepository("mteb/kinetics-400", False, "seen named in an issue"),),
        obtain="the CVDF hosts the videos (cvdfoundation/kinetics-dataset); pass source= a folder with them and the csv",
        notes=("MBT had 209,552 train and 17,069 test clips (supplementary C.2)",),
        uncertain=(
            "the columns and names of the csv files are from memory; the header is checked when it is read",
            "annotations CC BY 4.0, from memory",
        ),
    ),
    Benchmark(
        name="kinetics_sounds",
        title="Kinetics-Sounds",
        task="classification",
        columns={"label": "class"},
        label_columns=("label",),
        labels={"label": "kinetics_sounds_32"},
        metric="top-1 accuracy",
        splits={"train": None, "validation": None},
        clip_seconds=10.0,
        license="follows Kinetics; the OGM-GE lists are MIT",
        citation="Arandjelović, Zisserman: Look, Listen and Learn. ICCV 2017",
        sources=("pritamqu/CrissCross#4 (32 names)", "IBM/AdaMML#3 (31 names)"),
        parser="kinetics",
        annotations=_KINETICS_FILES,
        annotation_columns=_KINETICS_COLUMNS,
        options={"selection": True},
        obtain="pass source= a folder with the Kinetics-400 clips and csv: the rows of these classes are selected",
        notes=(
            "32 classes: AVBERT, CrissCross; 31 (without strumming guitar): AdaMML, OGM-GE and papers after it",
            "the 34 names of the first version and the 36 of MBT are not published",
        ),
        uncertain=(
            "no index order is published; names are in alphabetical order, as AVBERT sorts them",
            "the columns and names of the Kinetics csv files are from memory; the header is checked when it is read",
        ),
        variants={
            "32": {},
            "31": {"labels": {"label": "kinetics_sounds_31"}},
            "31_ogmge": {
                "labels": {"label": "kinetics_sounds_ogmge"},
                "splits": {"train": 14799, "test": 2597},
                "sources": ("GeWu-Lab/OGM-GE_CVPR2022@343dc1d95c:data/KineticSound/my_train.txt, my_test.txt",),
                "parser": "kinetics_sounds_ogmge",
                "annotations": {"train": "my_train.txt", "test": "my_test.txt"},
                "annotation_columns": ("<youtube id>_<start>", "second field, meaning not stated", "class index 0..30"),
                "options": {},
                "obtain": "pass source= a folder with the clips and OGM-GE's my_train.txt and my_test.txt",
                "uncertain": ("OGM-GE's lists hold class numbers; which name is which number is not published",),
            },
        },
    ),
    Benchmark(
        name="epic_kitchens_100",
        title="EPIC-KITCHENS-100",
        task="verb and noun classification",
        columns={"verb": "class", "noun": "class", "narration": "text"},
        label_columns=("verb", "noun"),
        labels={"verb": "epic_kitchens_100_verb", "noun": "epic_kitchens_100_noun"},
        metric="top-1 accuracy of action (verb and noun both right), verb and noun",
        splits={"train": 67217, "validation": 9668},
        clip_seconds=None,
        license="CC BY-NC 4.0",
        citation="Damen et al.: Rescaling Egocentric Vision: EPIC-KITCHENS-100. IJCV 2022",
        sources=("epic-kitchens/epic-kitchens-100-annotations@ea8b40457a:EPIC_100_{verb,noun}_classes.csv",),
        parser="epic_kitchens",
        annotations={"train": "EPIC_100_train.csv", "validation": "EPIC_100_validation.csv"},
        annotation_columns=(
            *("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp"),
            *("start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns"),
            "all_noun_classes",
        ),
        options={"whole_videos": True},
        obtain="pass source= a folder with the videos (<video_id>.MP4, or trimmed <narration_id>.mp4) and the csv",
        notes=(
            "the labels of the test split are withheld, so it is not listed",
            "EPIC_100_noun_classes_v2.csv has 305 rows; the benchmark uses the 300 of EPIC_100_noun_classes.csv",
        ),
        uncertain=("67,217 train rows (and 13,092 of test) are from memory; 9,668 of validation were counted",),
    ),
    Benchmark(
        name="moments_in_time",
        title="Moments in Time",
        task="classification",
        columns={"label": "class"},
        label_columns=("label",),
        labels={"label": "moments_in_time_v1"},
        metric="top-1 and top-5 accuracy",
        splits={"train": None, "validation": None},
        clip_seconds=3.0,
        license="terms of its own, by form (see uncertain)",
        citation="Monfort et al.: Moments in Time Dataset: one million videos for event understanding. TPAMI 2019",
        sources=("open-mmlab/mmaction2@4d6c934747:tools/data/mit/label_map.txt",),
        parser="moments",
        annotations={"train": "trainingSet.csv", "validation": "validationSet.csv"},
        annotation_columns=("<class>/<file>.mp4", "class", "votes", "votes"),
        obtain="by form from its authors; pass source= the folder with the clips and csv files",
        notes=("MBT used a snapshot of 330 classes (supplementary C.1) whose names are not published",),
        uncertain=(
            "the csv format and file names are from memory; class names are checked as they are read",
            "licence: non-commercial research, from memory",
        ),
        variants={
            "v1": {},
            "v2": {
                "labels": {"label": "moments_in_time_v2"},
                "sources": ("zhoubolei/moments_models@a2a11cc49a:category_momentsv2.txt",),
            },
        },
    ),
    Benchmark(
        name="ave",
        title="AVE",
        task="event localization",
        columns={"label": "class", "events": "classes"},
        label_columns=("label", "events"),
        labels={"label": "ave", "events": "ave_events"},
        metric="segment accuracy over 29 classes (28 and background)",
        splits={"train": 3339, "validation": 402, "test": 402},
        clip_seconds=10.0,
        license="no licence file; the videos come from AudioSet (YouTube)",
        citation="Tian, Shi, Li, Duan, Xu: Audio-Visual Event Localization in Unconstrained Videos. ECCV 2018",
        sources=(
            "YapengTian/AVE-ECCV18@93f843fed7:data/Annotations.txt",
            "haoyi-duan/DG-SCT@211fc57f00:data/AVE/categories.txt (same order)",
        ),
        parser="ave",
        annotations={"train": "trainSet.txt", "validation": "valSet.txt", "test": "testSet.txt"},
        annotation_columns=("Category", "VideoID", "Quality", "StartTime", "EndTime"),
        hub_ids=(
            HubRepository("UnFaZeD07/AVE-Dataset", False, "seen: 5.67 GB, tagged MIT by its uploader"),
            HubRepository("genjib/LAVISHData", False, "linked by LAVISH: the frames and wavs of its AVE experiments"),
        ),
        obtain="YapengTian/AVE-ECCV18 links AVE.zip; pass source= a folder with its clips and its split files (trainSet.txt, ...)",
        notes=(
            "events holds one class per second: the event where start <= t < end, else background (28, the last)",
            "4,143 annotations of 4,097 videos: the same video can appear with two events",
            "one annotation has no length (0 to 0 s): all its seconds are background",
        ),
    ),
    Benchmark(
        name="avsbench_s4",
        title="AVSBench-object S4 (single source)",
        task="segmentation",
        columns={"label": "class", "masks": "images"},
        label_columns=("label",),
        labels={"label": "avsbench_s4"},
        metric="mIoU and F-score (beta^2 = 0.3)",
        splits={"train": 3452, "validation": 740, "test": 740},
        clip_seconds=5.0,
        license="code Apache-2.0; the data on request by e-mail",
        citation="Zhou et al.: Audio-Visual Segmentation. ECCV 2022",
        sources=(
            "stoneMo/DeepAVFusion@2768e7f77b:metadata/avsbench_{train.txt,val.csv,test.csv}",
            "OpenNLPLab/AVSBench@f7414aff6a:avs_scripts/avs_s4/dataloader.py",
        ),
        parser="avsbench_s4",
        annotations=dict.fromkeys(("train", "validation", "test"), "s4_meta_data.csv"),
        annotation_columns=("video name", "(not used)", "category", "split (by its name)"),
        options={"official_splits": {"train": "train", "validation": "val", "test": "test"}},
        obtain="pass source= a folder with the videos (<video name>.mp4), gt_masks/<split>/<category>/<video>/ and the csv",
        notes=(
            "train clips have a mask of the first second only, the others one per second (5)",
            "the release ships frames and sound features; videos are needed here",
            "all-black masks count in mIoU and are left out of the F-score (OpenNLPLab/AVSBench#22)",
            "masks are binary; the class names are in alphabetical order, no index order is published",
        ),
    ),
    Benchmark(
        name="music_avqa",
        title="MUSIC-AVQA",
        task="question answering",
        columns={"question": "text", "answer": "class", "question_type": "class"},
        label_columns=("answer",),
        labels={"answer": "music_avqa_answers", "question_type": "music_avqa_question_types"},
        metric="answer accuracy, overall and per question type",
        splits={"train": 32087, "validation": 4595, "test": 9185},
        clip_seconds=60.0,
        license="annotations MIT; the videos by request",
        citation="Li et al.: Learning to Answer Questions in Dynamic Audio-Visual Scenarios. CVPR 2022",
        sources=(
            "haoyi-duan/DG-SCT@211fc57f00:data/AVQA/ans_vocab.txt",
            "GeWu-Lab/MUSIC-AVQA@cc8809514a:net_grd_avst/dataloader_avst.py",
        ),
        parser="music_avqa",
        question_words="music_avqa_words",
        annotations={"train": "avqa-train.json", "validation": "avqa-val.json", "test": "avqa-test.json"},
        annotation_columns=(
            *("video_id", "question_id", "type", "question_content", "templ_values", "question_deleted", "anser"),
        ),
        hub_ids=(
            HubRepository("mteb/MUSIC-AVQA_cls-preprocessed", False, "seen: a 22-way instrument task made of it"),
        ),
        obtain="pass source= a folder with the videos (<video_id>.mp4) and the official json files",
        notes=(
            "a row is a question; <Object>-like slots are filled from templ_values in order; the field is spelled anser",
            "LAVISH reports validation accuracy for this task (GenjiB/LAVISH#21)",
            "avqa-*.json is the first version; the authors' corrected one (json_update) has the same fields",
        ),
        uncertain=(
            "the order of the answers is DG-SCT's file; it could not be derived again",
            "32,087 train rows: 45,867 (README) less those counted in validation and test",
        ),
    ),
    Benchmark(
        name="ucf101",
        title="UCF101",
        task="classification",
        columns={"label": "class"},
        label_columns=("label",),
        labels={"label": "ucf101"},
        metric="top-1 accuracy; the mean over three splits, or one that is named",
        splits={"train": 9537, "test": 3783},
        clip_seconds=None,
        license="research use; no licence file",
        citation="Soomro, Zamir, Shah: UCF101: A Dataset of 101 Human Actions Classes. CRCV-TR-12-01, 2012",
        sources=("open-mmlab/mmaction2@4d6c934747:tools/data/ucf101/label_map.txt",),
        parser="ucf101",
        annotations={"train": "trainlist01.txt", "test": "testlist01.txt"},
        annotation_columns=("<class>/v_<class>_gXX_cYY.avi", "1-based label (train lists only)"),
        obtain="pass source= a folder with the videos and the official train and test lists",
        notes=("only part of the videos have a sound track",),
        uncertain=("9,537 and 3,783 clips of split 1 are from memory", "51 classes have sound throughout, from memory"),
        variants={
            "split1": {},
            **{
                f"split{number}": {
                    "annotations": {"train": f"trainlist0{number}.txt", "test": f"testlist0{number}.txt"},
                    "splits": {"train": None, "test": None},
                }
                for number in (2, 3)
            },
        },
        partitions=True,
    ),
    Benchmark(
        name="esc50",
        title="ESC-50",
        task="audio classification",
        has_video=False,
        columns={"label": "class", "fold": "integer"},
        label_columns=("label",),
        labels={"label": "esc50"},
        metric="accuracy, mean over five folds",
        splits={"train": 1600, "test": 400},
        clip_seconds=5.0,
        license="see uncertain",
        citation="Piczak: ESC: Dataset for Environmental Sound Classification. ACM Multimedia 2015, 10.1145/2733373.2806390",
        sources=("FarukErat/ESC-50@10653245c3:meta/esc50.csv (a fork that prefixes the file names)",),
        parser="esc",
        annotations={"train": "esc50.csv", "test": "esc50.csv"},
        annotation_columns=_ESC_COLUMNS,
        options={"test_fold": 1, "target": "target"},
        hub_ids=(HubRepository("ashraq/esc50", False, "from memory"),),
        obtain="pass source= a folder with the sounds and meta/esc50.csv (karolpiczak/ESC-50)",
        notes=("the variant names the fold that is the test split; the other four are train",),
        uncertain=("licence CC BY-NC 3.0, from memory",),
        variants={name: {"options": {**fields["options"], "target": "target"}} for name, fields in _FOLDS.items()},
        partitions=True,
    ),
    Benchmark(
        name="charades",
        title="Charades",
        task="multi-label classification",
        columns={"labels": "classes"},
        label_columns=("labels",),
        labels={"labels": "charades"},
        metric="mAP over 157 classes, of whole videos",
        splits={"train": 7985, "test": 1863},
        clip_seconds=None,
        license="see uncertain",
        citation="Sigurdsson et al.: Hollywood in Homes: Crowdsourcing Data Collection for Activity Understanding. ECCV 2016",
        sources=("a public research script that embeds the names; its repository is not known",),
        parser="charades",
        annotations={"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"},
        annotation_columns=(
            *("id", "subject", "scene", "quality", "relevance", "verified", "script", "objects", "descriptions"),
            *("actions", "length"),
        ),
        hub_ids=(HubRepository("HuggingFaceM4/charades", False, "from memory: a script, which datasets 5 refuses"),),
        obtain="pass source= a folder with the videos (<id>.mp4) and the official csv files",
        notes=("index = number of the class id (c000..c156)",),
        uncertain=(
            "single names may be worded otherwise in Charades_v1_classes.txt (c002 was seen both ways)",
            "the numbers of videos, the columns of the csv and the licence (AI2, non-commercial) are from memory",
        ),
    ),
    Benchmark(
        name="sounding_shapes",
        title="SoundingShapes",
        task="classification",
        columns={
            "label": "class",
            "shape": "class",
            "sound": "class",
            "events": "classes",
            "masks": "images",
            "question_type": "class",
            "question": "text",
            "answer": "class",
            "caption": "text",
        },
        label_columns=("label", "shape", "sound"),
        metric="top-1 accuracy",
        splits={"train": None, "validation": None, "test": None},
        clip_seconds=2.0,
        license="Apache-2.0",
        citation="hf_avfusion, `python -m hf_avfusion.data.sounding_shapes`",
        obtain="render it with `python -m hf_avfusion.data.sounding_shapes --output DIR` and pass source=DIR",
        notes=("the label names depend on the rendering and are in its shards",),
    ),
    Benchmark(
        name="avdigits",
        title="AVDigits",
        task="classification",
        columns={"label": "class", "speaker": "text"},
        label_columns=("label",),
        labels={"label": "avdigits"},
        metric="top-1 accuracy",
        splits={"train": None, "test": None},
        clip_seconds=None,
        license="that of the speech (FSDD: CC BY-SA 4.0) and of scikit-learn's digit images",
        citation="hf_avfusion, `python -m hf_avfusion.data.avdigits`; speech: Jakobovski/free-spoken-digit-dataset",
        obtain="render it with `python -m hf_avfusion.data.avdigits --speech DIR --output DIR2` and pass source=DIR2",
        notes=("no speaker and no image is in both splits",),
    ),
    Benchmark(
        name="esc10",
        title="ESC-10",
        task="audio classification",
        has_video=False,
        columns={"label": "class", "fold": "integer"},
        label_columns=("label",),
        labels={"label": "esc10"},
        metric="accuracy, mean over five folds",
        splits={"train": 320, "test": 80},
        clip_seconds=5.0,
        license="CC BY 3.0; single clips CC0, CC BY 3.0 or CC Sampling+",
        citation="Piczak: ESC: Dataset for Environmental Sound Classification. ACM Multimedia 2015, 10.1145/2733373.2806390",
        sources=("karoldvl/ESC-10@553c8f1 (folder order)",),
        parser="esc",
        annotations={"train": "esc10.csv", "test": "esc10.csv"},
        annotation_columns=_ESC10_COLUMNS,
        options={"test_fold": 1, "target": "esc10_target"},
        obtain="pass source= a folder with esc10.csv and the sounds ({fold}-{id}-{take}-{esc50 target}.flac)",
        notes=(
            "the variant names the fold that is the test split; clips of one recording share a fold",
            "the clip is the first 5 s of the file: longer ones are cut there (380 of 400 last 5.001 s, two about 7 s),"
            " shorter ones end where they end and are filled up by the processor's own rule for short clips",
        ),
        variants={
            name: {"options": {**fields["options"], "target": "esc10_target"}} for name, fields in _FOLDS.items()
        },
        partitions=True,
    ),
)

BENCHMARKS: dict[str, Benchmark] = {record.name: record for record in _RECORDS}
