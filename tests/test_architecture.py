"""The architecture, read from the source: who imports whom, where libraries appear, how long files are."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from tests.programs import ROOT

FOLDERS = ("glide_jax", "convert", "configs", "datasets", "tests")
ENTRY_POINTS = ("train.py", "sample.py", "evaluate.py", "app.py")

LEAVES = {"compute", "errors", "hub", "files", "options", "randomness", "images", "progress"}
# What each part may import of ours, beside itself; tests may import anything.
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "compute": {"errors"},
    "files": {"errors"},
    "hub": {"errors"},
    "randomness": {"errors"},
    "images": {"errors", "files"},
    "options": {"errors"},
    "progress": {"errors"},
    "tokenizer": LEAVES,
    "models": LEAVES,
    "diffusion": LEAVES,
    "parallel": LEAVES,
    "data": LEAVES | {"tokenizer"},
    "checkpoint": LEAVES | {"parallel"},
    "sample": LEAVES | {"models", "diffusion", "tokenizer", "parallel", "checkpoint"},
    "export": LEAVES | {"tokenizer", "sample"},
    "train": LEAVES | {"models", "diffusion", "tokenizer", "data", "parallel", "checkpoint", "sample"},
    "evaluate": LEAVES | {"sample", "models", "tokenizer", "data"},
    "ui": LEAVES | {"sample", "evaluate"},
    "config": LEAVES | {"models", "diffusion", "data", "parallel", "checkpoint", "sample", "train", "evaluate"},
    "convert": LEAVES | {"models", "diffusion", "tokenizer", "checkpoint", "config", "sample"},
    "configs": {"config"},
    "train.py": LEAVES | {"config", "train", "parallel"},
    "sample.py": LEAVES | {"config", "sample", "parallel"},
    "evaluate.py": LEAVES | {"config", "evaluate", "parallel"},
    "app.py": LEAVES | {"config", "ui"},
    "datasets": set(),
}

# Libraries that may be imported only in the places named.
CONFINED = {
    "torch": ("convert", "glide_jax/evaluate/openclip.py", "glide_jax/evaluate/inception.py", "tests"),
    "torchvision": ("tests",),
    "tensorflow": (),
    "ml_collections": ("configs", "glide_jax/config.py", *ENTRY_POINTS, "tests"),
}
# Libraries that come with an extra or take seconds to import: imported inside the function that needs them.
LAZY = {"av", "gradio", "huggingface_hub", "wandb", "tensorboardX", "open_clip", "tensorflow_datasets", "webdataset"}
SCRIPTS = ("datasets", "tests/benchmarks")

MOST_LINES_IN_A_FILE = 450
MOST_LINES_IN_A_FUNCTION = 90
VAGUE_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}


class Import(NamedTuple):
    """One imported name: `from a.b import c` is "a.b.c"; lazy means inside a function."""

    path: Path
    line: int
    name: str
    lazy: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.name}"

    @property
    def library(self) -> str:
        return self.name.split(".")[0]


@cache
def sources() -> dict[Path, ast.Module]:
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT): ast.parse(path.read_text(), str(path)) for path in paths}


@cache
def imports() -> list[Import]:
    return [found for path, tree in sources().items() for found in imports_below(tree, path)]


def imports_below(tree: ast.AST, path: Path, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        for name in imported_names(node, path):
            yield Import(path, node.lineno, name, lazy)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports_below(node, path, lazy or inside)


def imported_names(node: ast.AST, path: Path) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom():
            package = path.parts[: -node.level] if node.level else ()
            module = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        case ast.Call(ast.Name(function) | ast.Attribute(_, function), [ast.Constant(str(name)), *_]):
            if function in ("import_module", "__import__"):
                yield name


def part_of(path: Path) -> str:
    """The row of `MAY_IMPORT` that a file belongs to."""
    return Path(path.parts[1]).stem if path.parts[0] == "glide_jax" else path.parts[0]


def part_imported(name: str) -> str | None:
    """The row of `MAY_IMPORT` that an imported name belongs to; None if it is not ours."""
    first, second, *_ = [*name.split("."), "__init__"]
    if first == "glide_jax":
        return second
    if f"{first}.py" in ENTRY_POINTS:
        return f"{first}.py"
    return first if first in ("convert", "configs", "tests") else None


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Classes, functions and methods, with their dotted names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{prefix}{node.name}.")


def assert_none(wrong: list[str]) -> None:
    assert not wrong, "\n".join(["", *wrong])


def test_each_part_imports_only_what_the_table_allows():
    ours = [(found, part_of(found.path), part_imported(found.name)) for found in imports()]
    assert len(ours) > 100
    assert_none(
        [
            str(found)
            for found, importer, part in ours
            if importer != "tests" and part not in {None, importer} | MAY_IMPORT.get(importer, set())
        ]
    )


def test_the_table_has_no_cycle_and_names_every_part():
    TopologicalSorter(MAY_IMPORT).prepare()
    assert_none(sorted({part_of(path) for path in sources()} - {*MAY_IMPORT, "tests"}))


def test_libraries_are_imported_only_where_they_belong():
    confined = [found for found in imports() if found.library in CONFINED]
    assert {found.library for found in confined} >= {"torch", "ml_collections"}
    assert_none(
        [
            str(found)
            for found in confined
            if not any(found.path.is_relative_to(place) for place in CONFINED[found.library])
        ]
    )


def test_libraries_of_the_extras_and_slow_ones_are_imported_inside_functions():
    needed = [
        found for found in imports() if found.library in LAZY and not any(map(found.path.is_relative_to, SCRIPTS))
    ]
    assert {found.library for found in needed} == LAZY
    assert_none([str(found) for found in needed if not found.lazy])


def test_no_file_is_too_long():
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert_none([f"{path}: {length} lines" for path, length in lines.items() if length > MOST_LINES_IN_A_FILE])


def test_no_function_is_too_long():
    lines = {
        f"{path}: {name}": node.end_lineno - node.lineno + 1
        for path, tree in sources().items()
        for name, node in definitions(tree)
        if not isinstance(node, ast.ClassDef)
    }
    assert_none([f"{name}: {length} lines" for name, length in lines.items() if length > MOST_LINES_IN_A_FUNCTION])


def test_no_module_has_a_vague_name():
    assert_none([str(path) for path in sources() if VAGUE_NAMES & {*path.parts, path.stem}])


def test_everything_public_has_a_docstring():
    # Magic methods are documented by their class; datasets/ holds scripts.
    assert_none(
        [
            f"{path}: {name}"
            for path, tree in sources().items()
            if part_of(path) not in ("tests", "datasets")
            for name, node in definitions(tree)
            if not any(step.startswith("_") for step in name.split(".")) and not ast.get_docstring(node)
        ]
    )
