"""The documentation site: the pages of this folder, and what is generated from the code.

make docs        # docs/_build/html/index.html, with warnings as errors
"""

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import reference  # noqa: E402 - beside this file
from pygments.lexers import JsonLexer, TextLexer  # noqa: E402

project = "rlhf_jax"
author = copyright = "The rlhf_jax authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "rlhf_jax"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["scroll.js"]
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_use_legacy_class_based = False
# A fence without a language is a drawing or output.
highlight_language = "none"
copybutton_exclude = ".linenos, .gp, .go"


def name_files_of_the_repository(app: Any, page: str, source: list[str]) -> None:
    """Turn links that leave this folder, which the site does not have, into the files' names."""
    folder = (DOCS / page).parent

    def named(link: re.Match) -> str:
        text, target = link[1], link[2]
        path = (folder / target.partition("#")[0]).resolve()
        if path.is_relative_to(DOCS) or "://" in target:
            return link[0]
        name = str(path.relative_to(ROOT)) + ("/" if path.is_dir() else "")
        return f"`{name}`" if text.strip("`") in name else f"{text} (`{name}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", named, source[0])


def give_captions_a_level(
    app: Any, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Say of which level the captions of the side bar are, as a heading has to."""
    navigation = context.get("furo_navigation_tree", "")
    level = navigation.replace('role="heading"', 'role="heading" aria-level="2"')
    context["furo_navigation_tree"] = level


def setup(app: Any) -> None:
    """Write the generated pages, and read docstrings as the prose that they are."""
    reference.write_pages(DOCS / "reference")
    app.add_lexer("jsonl", JsonLexer)
    for name in ("txt", "csv", "tsv"):
        app.add_lexer(name, TextLexer)
    app.connect("source-read", name_files_of_the_repository)
    # After the theme, which makes the side bar in the same place.
    app.connect("html-page-context", give_captions_a_level, priority=900)
    app.connect("autodoc-process-docstring", reference.as_restructured_text)
    app.connect("autodoc-process-signature", reference.with_short_types)
