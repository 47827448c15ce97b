"""The metrics as modules of the `evaluate` library, one file each, that load without the Hub.

    from hf_avfusion.metrics.evaluate_modules import METRICS
    metric = evaluate.load(METRICS["mean_average_precision"])     # or MeanAveragePrecision() of its file
    for batch in loader:
        metric.add_batch(predictions=model(**batch).logits, references=batch["labels"])
    metric.compute()

A module stores scores as float32 and calls the plain function. If all scores are in memory, call the plain function
directly. Options are arguments of the metric: `evaluate.load(path, k=(1, 3))`.

Each file has one class and one import per line, because of `evaluate.load`: it uses the first metric class in a file, and
reads `import a, b` as a package "a,".
"""

from pathlib import Path

# Name -> file, as a string for `evaluate.load`.
METRICS: dict[str, str] = {
    path.stem: str(path) for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in ("__init__", "info")
}
