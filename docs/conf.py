"""How Sphinx builds this folder: `uv run --group docs sphinx-build -W docs out/docs`."""

import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from glide_jax.options import described, flat

sys.path.insert(0, str(Path(__file__).parents[1]))  # convert/ and configs/ are not in the installed package

project = "glide_jax"
author = "The authors of glide_jax"
copyright = author
version = release = installed_version("glide-jax")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sphinx = False
smartquotes = False
highlight_language = "none"
pygments_style, pygments_dark_style = "friendly", "monokai"

nb_execution_mode = "off"  # a test runs the notebook
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
napoleon_preprocess_types = False


# What annotations and defaults print as, and how they are written in the source.
_AS_WRITTEN = {
    r"(jax\.)?jaxlib\._jax\.Array": "Array",
    r"jax\.(ShapeDtypeStruct)|jax\.sharding\.(NamedSharding)|jaxtyping\.(Shaped)": r"\1\2\3",
    r"Key\[Array, ''\] \| UInt32\[Array, '2'\] \| UInt32\[Array, '4'\]": "PRNGKeyArray",
    r"\bndarray\b": "np.ndarray",
    r"<factory>": "...",
    r"<function (\w+)[^>]*>": r"\1",
}
_CONFIG_DEFAULT = re.compile(r"(= ?\w+Config)\(")


def _as_written(app: Sphinx, what: str, name: str, member: Any, options: Any, *signature: str | None) -> Any:
    """Arguments and return annotation as a reader of the source knows them."""
    return tuple(part and _short(part) for part in signature)


def _short(signature: str) -> str:
    for pattern, written in _AS_WRITTEN.items():
        signature = re.sub(pattern, written, signature)
    position = 0
    while found := _CONFIG_DEFAULT.search(signature, position):  # a configuration's fields are on its own entry
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(signature[end], 0)
            end += 1
        signature = f"{signature[: found.end()]}){signature[end:]}"
        position = found.end()
    return signature


def _leave_out(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples are in their class's own words; theirs is "Alias for field number 0"."""
    return True if type(member).__name__ == "_tuplegetter" else None


def _plain_text(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: no markup by stars, bars and final underscores; a module's indented lines are code."""
    lines[:] = [re.sub(r"(`[^`]*`)|([*|]|(?<=\w)_(?!\w))", lambda m: m[1] or rf"\{m[2]}", line) for line in lines]
    if what == "module":
        indented = [i for i, line in enumerate(lines) if line.startswith("    ") and not lines[i - 1]]
        for i in reversed(indented):
            lines[i:i] = ["::", ""]
    if what == "property":  # napoleon takes "The schedule in force: ..." for a type; a comment before it stops that
        lines[:0] = ["..", ""]


def _several_names(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """One entry may be of several arguments; with spaces between them all but the last would be taken for a type."""
    entry = re.compile(r"(\s*:(?:param|ivar) )(\w+(?:, \w+)+):")
    lines[:] = [entry.sub(lambda m: f"{m[1]}{m[2].replace(', ', ',')}:", line) for line in lines]


class OptionTable(SphinxDirective):
    """`{option-table} MODULE.CLASS`: the options of a class, each with its default, values allowed and help.

    `:without: PREFIX` leaves out those that another table has.
    """

    required_arguments = 1
    option_spec: ClassVar = {"without": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """The table as docutils nodes."""
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(import_module(module), name)
        defaults = dict(_values(cls()))
        body = nodes.tbody()
        for option, _, allowed, text in described(cls):
            if not option.startswith(self.options.get("without", " ")):
                values = allowed.removeprefix(", ").removesuffix(" or NoneType")
                body += _row(f"`{option}`", defaults[option], values, text)
        group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (25, 15, 20, 40)), cols=4)
        group += nodes.thead("", _row("option", "default", "values", "what it does"))
        group += body
        return [nodes.table("", group)]


def _values(options: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of options, as code; those that are not set are empty."""
    for name, value in flat(options).items():
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "" if value in (None, "", ()) else f"`{value}`"


def _row(*cells: str) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *_inline(cell))) for cell in cells))


def _inline(text: str) -> list[nodes.Node]:
    """Text in which what is between backticks is code."""
    parts = enumerate(text.split("`"))
    return [nodes.literal(part, part) if number % 2 else nodes.Text(part) for number, part in parts if part]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("option-table", OptionTable)
    app.connect("autodoc-process-signature", _as_written)
    app.connect("autodoc-skip-member", _leave_out)
    app.connect("autodoc-process-docstring", _plain_text, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", _several_names, priority=600)
