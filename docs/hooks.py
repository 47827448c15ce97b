"""MkDocs hooks: add the files of the repository that the pages link to, so that the same links work on GitHub and on the site."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# Files outside docs/ that become part of the site, under the same paths as in the repository.
INCLUDED = ["CONTRIBUTING.md", "CHANGELOG.md", "model_cards/mbt.md", "model_cards/avmae.md", "model_cards/lavish.md"]
INCLUDED += [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.png"))]


def on_files(files, config):
    for name in INCLUDED:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, **_):
    """Rewrite each link from the layout of the repository, where pages lie in docs/, to that of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if uri in INCLUDED else f"docs/{uri}")

    def rewrite(match):
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if (name := target.removeprefix("docs/")) == target and target not in INCLUDED:
            return match[0]  # not part of the site; --strict reports it
        return f"]({posixpath.relpath(name, posixpath.dirname(uri) or '.')}{match[2]})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*|)\)", rewrite, markdown)


def on_page_content(html, **_):
    """Docstrings in the style of transformers refer to names as [`MBTModel`]; drop these brackets."""
    return re.sub(r"\[(<code>[A-Z][\w.]*</code>)\]", r"\1", html)
