"""Pushes a trained model to the Hub, with the code that runs it and a model card.

    # shows the files, their sizes and the card; pushes nothing
    python examples/push_to_hub.py runs/mine org/mbt-mine --dry_run

    # from the output folder of examples/finetune_classification.py, with the results of examples/evaluate.py
    hf auth login
    python examples/push_to_hub.py runs/mine org/mbt-mine --license cc-by-4.0 --results evaluation/results.json \
        --training_data "1,200 videos of our own, filmed in 2024" --label_source "the folders' names"

    # an adapter of --adapter lavish or lora: with its base model, or as one whole model that loads without peft
    python examples/push_to_hub.py runs/ave org/lavish-ave --base_repo org/lavish-ave-base
    python examples/push_to_hub.py runs/ave org/lavish-ave-whole --build_in

The folder holds a processor and either a model or an adapter (peft). The card takes the recipe from the run's `recipe.json` in the
same folder and, with `--dataset`, the metrics from its `*_results.json`. Everybody can then load the model:

    pipeline("audio-visual-classification", model="org/mbt-mine", trust_remote_code=True)("clip.mp4")
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hf_avfusion.arguments import argument_parser


@dataclass
class Options:
    dry_run: bool = field(default=False, metadata={"help": "Show what would be pushed, and push nothing."})
    private: bool = field(default=False, metadata={"help": "If the repository is new, make it private."})
    revision: str | None = field(default=None, metadata={"help": "Branch; created if it does not exist."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing."})
    message: str | None = field(default=None, metadata={"help": "Commit message."})
    build_in: bool = field(
        default=False,
        metadata={"help": "Of an adapter: push one whole model, with LAVISH adapters built in or LoRA merged."},
    )
    base_repo: str | None = field(
        default=None,
        metadata={"help": "Of an adapter whose base model is a local folder: push that too, to this repository."},
    )
    max_shard_size: str = field(default="5GB", metadata={"help": "Larger weights are split into several files."})

    title: str | None = field(default=None, metadata={"help": "Heading of the card; default: the repository's name."})
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, such as cc-by-4.0."})
    training_data: str | None = field(default=None, metadata={"help": "A sentence about the training data."})
    datasets: list[str] = field(default_factory=list, metadata={"help": "Hub repositories of the training data."})
    label_source: str | None = field(default=None, metadata={"help": "Source of the label names."})
    base_model: str | None = field(default=None, metadata={"help": "Hub id of the checkpoint training started from."})
    limits: str | None = field(default=None, metadata={"help": "Limitations and out-of-scope uses of the model."})
    results: list[str] = field(default_factory=list, metadata={"help": "Result files (JSON) for the card."})
    results_checkpoint: str | None = field(
        default=None,
        metadata={"help": "This model's name in a results.json of several models; default: the folder."},
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Dataset of results that do not name theirs, such as VGGSound."}
    )
    recipe: str | None = field(default=None, metadata={"help": "JSON of settings; default: FOLDER/recipe.json."})

    def __post_init__(self) -> None:
        for name, files in {"results": self.results, "recipe": [self.recipe] if self.recipe else []}.items():
            for file in files:
                if not Path(file).is_file():
                    raise FileNotFoundError(f"--{name} {file}: no such file")


def parse() -> tuple[Options, Path, str]:
    parser = argument_parser(Options, description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="Output folder of a training run.")
    parser.add_argument("repo_id", help="Repository on the Hub, org/name.")
    options, where = parser.parse_args_into_dataclasses()
    return options, Path(where.folder), where.repo_id


if __name__ == "__main__":  # wrong arguments are answered before the imports below, which take seconds
    if not (folder := parse()[1]).is_dir():
        sys.exit(f"error: {folder} is not a folder: give the output folder of a training run")

from rich import print
from rich.markup import escape
from rich.table import Table
from transformers import AutoConfig, AutoProcessor

import hf_avfusion
from hf_avfusion import hub
from hf_avfusion.evaluation.adapter_checkpoints import adapter_config, base_class, base_of, load_adapter
from hf_avfusion.model_card import CardDetails, Evaluation, read_recipe, read_results
from hf_avfusion.models.shared.loaded_weights import load_whole


def load(folder: Path):
    """The saved model, in its own class, and its processor."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the output folder of a training run")
    processor = AutoProcessor.from_pretrained(folder)
    if adapter_config(folder) is not None:
        return load_adapter(folder), processor
    name = (AutoConfig.from_pretrained(folder).architectures or [None])[0]
    if name not in hf_avfusion.__all__:
        raise ValueError(f"{folder} holds a {name}, but only models of hf_avfusion can be pushed: give a folder of one")
    return load_whole(getattr(hf_avfusion, name), folder), processor


def whole_model(model):
    """A plain model that is equal to a model with an adapter: LAVISH's are built in, those of other methods merged."""
    if not hasattr(model, "peft_config"):
        raise ValueError("--build_in is for an adapter, but the folder holds a whole model: leave it out")
    if model.active_peft_config.peft_type.value == "LAVISH":
        from hf_avfusion.adapters import build_in

        return build_in(model)
    return model.merge_and_unload()


def push_base(model, processor, folder: Path, options: Options) -> None:
    """Pushes the base model of an adapter if it is a local folder, and names its repository in the adapter's config."""
    config = model.active_peft_config
    named = config.base_model_name_or_path
    if not Path(base_of(folder)).is_dir():
        if options.base_repo is not None:
            raise ValueError(
                f"--base_repo {options.base_repo}: the adapter's base model is on the Hub, {named}: leave it out"
            )
        return
    if options.base_repo is None:
        raise ValueError(
            f"the base model of this adapter is a local folder, {named}, which others cannot load: give --base_repo org/name to "
            "push it too, or --build_in to push one whole model"
        )
    if not options.dry_run:
        base = load_whole(base_class(base_of(folder)), base_of(folder))
        card = CardDetails(training_data="none; it is the frozen base model of adapters, whose head is random.")
        done = hub.push(base, processor, options.base_repo, card=card, private=options.private)
        sys.stdout.write(f"pushed the base model: {done.commit_url}\n")
    config.base_model_name_or_path = options.base_repo


def find_results(folder: Path, options: Options) -> list[Evaluation]:
    """Results from the files of `--results`; without them, from the run's own `*_results.json` if `--dataset` is given."""
    files = [Path(file) for file in options.results]
    if not files and options.dataset:
        files = [
            f for f in sorted(folder.glob("*_results.json")) if f.name not in ("train_results.json", "all_results.json")
        ]
    if not files and list(folder.glob("*_results.json")):
        print(f"[yellow]{folder} holds results; give --dataset to add them to the card[/]")
    evaluations = []
    for file in files:
        content = json.loads(file.read_text())
        several = isinstance(content, dict) and len({e["checkpoint"] for e in content.get("evaluations", [])}) > 1
        checkpoint = options.results_checkpoint or (folder if several else None)
        if not several and "evaluations" in content and options.results_checkpoint is None:
            print(f"{file} holds evaluations of {content['evaluations'][0]['checkpoint']}, assumed to be this model")
        evaluations += read_results(file, options.dataset, checkpoint=checkpoint)
    return evaluations


def main() -> int:
    options, folder, repo_id = parse()
    try:
        model, processor = load(folder)
        if options.build_in:
            model = whole_model(model)
        elif hasattr(model, "peft_config"):
            push_base(model, processor, folder, options)
        elif options.base_repo is not None:
            raise ValueError("--base_repo is for an adapter, but the folder holds a whole model: leave it out")
        recipe = options.recipe or (folder / "recipe.json" if (folder / "recipe.json").is_file() else None)
        card = CardDetails(
            title=options.title,
            license=options.license,
            training_data=options.training_data,
            datasets=options.datasets,
            recipe=read_recipe(recipe) if recipe else {},
            label_source=options.label_source,
            evaluation=find_results(folder, options),
            base_model=options.base_model,
            limits=options.limits,
        )
        size = {"max_shard_size": options.max_shard_size}
        if options.dry_run:
            with tempfile.TemporaryDirectory() as temporary:
                exported = hub.export(model, processor, Path(temporary) / "export", card=card, repo_id=repo_id, **size)
                table = Table("file", "bytes", title=f"would be pushed to {repo_id}")
                for name, bytes_ in hub.exported_files(exported):
                    table.add_row(name, f"{bytes_:,}")
                text = (exported / "README.md").read_text()
            print(table)
            sys.stdout.write(text + "\n")  # rich's print would wrap lines and read markup
            print("nothing was pushed (--dry_run)")
            return 0
        done = hub.push(
            model, processor, repo_id, card=card, private=options.private, revision=options.revision,
            create_pr=options.create_pr, commit_message=options.message, **size,
        )  # fmt: skip
    except (ValueError, hub.HubError) as error:
        print(f"[red]{escape(str(error))}[/]", file=sys.stderr)
        return 1
    sys.stdout.write(f"pushed: {done.pr_url or done.commit_url}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
