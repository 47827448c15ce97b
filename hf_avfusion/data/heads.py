"""What the label columns of a benchmark say about a model: names, several heads, several labels per clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


def head_fields(features: datasets.Features, columns: Sequence[str], num_segments: int | None = None) -> dict[str, Any]:
    """The fields of a model's configuration that its labels decide: id2label, label2id, class_splits, problem_type.

    Args:
        features: of the rows, such as `rows.features`.
        columns: one column of ClassLabel (single label) or of List(ClassLabel) (multi-label); or several columns of
            ClassLabel, one head each, in this order.
        num_segments: if set, the one column of List(ClassLabel) holds a class for each segment (event localisation).

    Raises:
        ValueError: a column that does not exist or holds no class labels, or a multi-label one beside others; `num_segments`
            with a column that holds no lists.
    """
    import datasets

    lists = [column for column in columns if isinstance(features.get(column), datasets.List)]
    kinds = {name: kind.feature if isinstance(kind, datasets.List) else kind for name, kind in features.items()}
    known = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    if unknown := [column for column in columns if column not in known]:
        raise ValueError(
            f"no labels in {', '.join(unknown)}: the columns that hold class labels are {', '.join(known)}; pass"
            " label_columns= (--label_columns) of these"
        )
    if lists and len(columns) > 1:
        raise ValueError(f"the column {lists[0]} holds several labels per clip and cannot stand beside others")
    if num_segments is not None and not lists:
        raise ValueError(
            f"num_segments={num_segments} (--num_segments) needs a column with a list of classes, one for each part of the clip"
            f" (AVE: events); {', '.join(columns)} holds one class for the whole clip"
        )
    labels = [name for column in columns for name in kinds[column].names]
    fields = {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
        "class_splits": None,
        "problem_type": "multi_label_classification" if lists else "single_label_classification",
    }
    if num_segments is not None:
        fields |= {"num_segments": num_segments, "problem_type": "single_label_classification"}
    if len(columns) > 1:
        fields["class_splits"] = {column: len(kinds[column].names) for column in columns}
        fields["problem_type"] = "multi_head_classification"
    return fields
