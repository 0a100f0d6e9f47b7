"""How Sphinx builds this folder: `uv run --group docs sphinx-build -W docs out/docs`."""

import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

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
    """Docstrings are plain text: stars and bars are no markup, indented lines of a module's are as they are."""
    lines[:] = [re.sub(r"(`[^`]*`)|([*|])", lambda m: m[1] or rf"\{m[2]}", line) for line in lines]
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


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _as_written)
    app.connect("autodoc-skip-member", _leave_out)
    app.connect("autodoc-process-docstring", _plain_text, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", _several_names, priority=600)
