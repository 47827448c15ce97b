"""Command that prints the facts about a benchmark.

python -m hf_avfusion.data.describe vggsound
python -m hf_avfusion.data.describe kinetics_sounds --variant 31 --labels
python -m hf_avfusion.data.describe                      # one line per benchmark
"""

from __future__ import annotations

from ...arguments import OneLineErrors
from .records import BENCHMARKS, Benchmark


def describe(record: Benchmark, variant: str | None = None, labels: bool = False) -> None:
    """Prints a record or one of its variants; with `labels`, also every label name and its index."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = record.variant(variant)
    console = Console()
    chosen = variant or next(iter(record.variants), None)
    console.print(f"[bold]{escape(shown.title)}[/bold]  {shown.name}{f' (variant {chosen})' if chosen else ''}")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")

    def add(what: str, lines) -> None:
        text = "\n".join([lines] if isinstance(lines, str) else lines)
        if text:
            table.add_row(what, escape(text))

    add("task", shown.task)
    add("metric", shown.metric)
    add("clip length", f"{shown.clip_seconds:g} s" if shown.clip_seconds else "varies")
    add("splits", [f"{name}: {_count(count)}" for name, count in shown.splits.items()])
    add("columns", [_column(shown, column) for column in shown.columns])
    add("label", ", ".join(shown.label_columns))
    add("variants", ", ".join(record.variants))
    add("annotations", [f"{split}: {file}" for split, file in shown.annotations.items()])
    add("  columns", ", ".join(shown.annotation_columns))
    add("  reading", [f"{name}: {value}" for name, value in shown.options.items()])
    add("how to get it", shown.obtain)
    if shown.parser:
        option = f" --variant {variant}" if variant else ""
        add("to shards", f"python examples/prepare_benchmark.py {shown.name}{option} --source DIR --output DIR2")
    add("Hub", [f"{hub.id} ({'verified' if hub.verified else 'not verified'}; {hub.note})" for hub in shown.hub_ids])
    add("licence", shown.license)
    add("cite", shown.citation)
    add("sources", shown.sources)
    add("notes", [f"- {note}" for note in shown.notes])
    add("uncertain", [f"- {note}" for note in shown.uncertain])
    console.print(table)
    if labels:
        for column in shown.labels:
            console.print(f"[cyan]{column}[/cyan]")
            for index, name in enumerate(shown.label_names(column)):
                console.print(f"  {index:3d}  {escape(name)}", highlight=False)


def _count(count: int | None) -> str:
    return "number of rows not known" if count is None else f"{count:,} rows"


def _column(record: Benchmark, column: str) -> str:
    names = record.label_names(column)
    kind = record.columns[column]
    return f"{column}: {kind}" if names is None else f"{column}: {kind} of {len(names)} ({', '.join(names[:3])}, ...)"


def _overview() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "task", "labels", "metric", box=None)
    for record in BENCHMARKS.values():
        sizes = [len(record.label_names(column)) for column in record.label_columns if column in record.labels]
        table.add_row(record.name, record.task, " + ".join(map(str, sizes)), record.metric)
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineErrors(prog="python -m hf_avfusion.data.describe", description="Print the facts about a benchmark.")
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS), help="a benchmark; by default, a table of all")
    parser.add_argument("--variant", help="one of its variants")
    parser.add_argument("--labels", action="store_true", help="list every label name with its index")
    options = parser.parse_args(arguments)
    if options.name is None:
        _overview()
        return
    try:
        describe(BENCHMARKS[options.name], options.variant, options.labels)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
