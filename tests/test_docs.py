"""README, docs, model cards and CONTRIBUTING name only files, modules and public names that exist; the README's first lines run."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
from forked import run_forked

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
API = ROOT / "docs" / "api"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "model_cards").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = re.compile(r"(?<![\w/])hf_avfusion(?:\.[A-Za-z_]\w*)+")
# Files of the repository, as in `python examples/predict.py`; `<arch>` and the like are not matched.
FILE = re.compile(r"(?<![\w./<>-])(?:benchmarks|docs|examples|hf_avfusion|model_cards|tests)/[\w./-]*\.\w+")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_modules_and_names_exist(page):
    for name in sorted(set(MODULE.findall(page.read_text(encoding="utf-8")))):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_exist(page):
    files = FILE.findall(page.read_text(encoding="utf-8"))
    assert not [file for file in files if not (ROOT / file).exists()]


def test_readme_is_short():
    assert 600 <= len(README.read_text(encoding="utf-8").split()) <= 1100


def test_readme_keeps_its_two_commands():
    text = README.read_text(encoding="utf-8")
    assert "pip install -e . && python examples/quickstart.py" in text
    assert 'pip install -e ".[test]" && pytest' in text


def test_first_lines_of_the_readme_run(tmp_path, tmp_path_factory, monkeypatch):
    """As printed, in an empty folder, with nothing but the package."""
    code = re.search(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    elsewhere = tmp_path_factory.mktemp("script")
    (elsewhere / "lines.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = run_forked(elsewhere, elsewhere / "lines.py")
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^print\(.*#\s*(.+)$", code, re.MULTILINE)
    assert done.stdout.split("\n")[:-1] == printed
    assert not list(tmp_path.iterdir())


def test_first_lines_stand_in_getting_started_too():
    first = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
    pages = (README, ROOT / "docs" / "getting_started.md")
    assert len({first.search(page.read_text(encoding="utf-8"))[1] for page in pages}) == 1


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"]({name})" in contents
        assert f": {name}\n" in navigation


@pytest.mark.parametrize(
    ("package", "page"), [("hf_avfusion", "hf_avfusion"), ("hf_avfusion.data", "data"), ("hf_avfusion.hub", "hub")]
)
def test_api_pages_show_every_public_name(package, page):
    text = (API / f"{page}.md").read_text(encoding="utf-8")
    if package == "hf_avfusion":  # the names that are documented with the data
        text += (API / "data.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^(?:::: [\w.]+\.|### )(\w+)$", text, re.MULTILINE))
    assert set(import_module(package).__all__) <= shown
