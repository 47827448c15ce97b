"""The metrics as modules of the `evaluate` library, one file each, that load without the Hub.

    from hf_avfusion.metrics.evaluate_modules import METRICS
    metric = evaluate.load(METRICS["mean_average_precision"])     # or MeanAveragePrecision() of its file
    for batch in loader:
        metric.add_batch(predictions=model(**batch).logits, references=batch["labels"])
    metric.compute()

They only store what they are given and call the plain functions, which are the way to go where all scores are in memory
anyway. Scores are stored as float32. Options are given when a metric is made: `evaluate.load(path, k=(1, 3))`.

Each file holds one class and one import per line, both for the sake of `evaluate.load`: it takes the first metric class
it finds in a file, and reads `import a, b` as a package "a,".
"""

from pathlib import Path

# Name -> file, as a string because that is what `evaluate.load` takes.
METRICS: dict[str, str] = {
    path.stem: str(path) for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in ("__init__", "info")
}
