"""Options declared once: checks, command lines and pages are read from them."""

import argparse
import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import pytest

from glide_jax.errors import GlideError
from glide_jax.options import (
    INLINE,
    Options,
    Parser,
    add_arguments,
    build,
    described,
    flat,
    given,
    nested,
    option,
    parse,
)


@dataclass(frozen=True)
class Part(Options):
    scale: Annotated[float, option("a scale", low=0)] = 3.0
    kind: Annotated[Literal["a", "b"], option("a kind")] = "a"
    interval: Annotated[tuple[float, float], option("between")] = (0.0, math.inf)


@dataclass(frozen=True, slots=True)
class Rates(Options):
    PREFIX: ClassVar[str] = "rates."
    decay: Annotated[float, option("decay", low=0, below=1)] = 0.5


@dataclass(frozen=True)
class Whole(Options):
    part: Annotated[Part, INLINE] = Part(scale=2.0)
    rates: Rates = field(default_factory=Rates)
    count: Annotated[int, option("how many", low=1)] = 4
    rho: Annotated[float | None, option("a power (default 7)", above=0)] = None
    paths: Annotated[str | tuple[str, ...], option("where")] = ""
    quick: Annotated[bool, option("be quick")] = False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": -1}, "scale must be at least 0, not -1.0"),
        ({"scale": math.nan}, "scale must be at least 0, not nan"),
        ({"kind": "c"}, "kind cannot be 'c': it takes 'a', 'b'"),
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"count": True}, "count cannot be True: it takes int"),
        ({"rho": 0}, "rho must be above 0, not 0.0"),
        ({"rates": {"decay": 1}}, r"rates\.decay must be in \[0, 1\), not 1\.0"),
        ({"rates": 3}, "rates is a group of options"),
        ({"coutn": 3}, "coutn is unknown; did you mean count"),
        ({"interval": [0, "x"]}, "interval cannot be"),
    ],
)
def test_impossible_values_are_one_line(values, message):
    with pytest.raises(GlideError, match=message):
        build(Whole, values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scael", "3"], r"^unknown option --scael; did you mean --scale\?$"),
        (["--wholly=3"], r"^unknown option --wholly; my\.py --help lists the options$"),
        (
            ["--scale", "3", "a cat"],
            r"^unexpected argument 'a cat': write --kind \"\.\.\.\", with quotes; my\.py --help",
        ),
        (["--scale", "x"], r"^argument --scale: invalid float value: 'x'; my\.py --help lists the options$"),
    ],
)
def test_a_mistake_on_a_command_line_is_one_line(words, message, capsys):
    parser = Parser(prog="my.py", unnamed="--kind")
    add_arguments(parser, Whole)
    with pytest.raises(GlideError, match=message):
        parser.parse_args(words)
    assert capsys.readouterr().err == ""


def test_inline_fields_are_named_without_their_own():
    made = build(Whole, {"kind": "b", "count": 2, "interval": [1, 2]})
    assert made == Whole(Part(2.0, "b", (1.0, 2.0)), count=2)
    assert build(Whole, flat(made)) == made
    assert build(Whole, {"count": 3}, base=made).part.kind == "b"


def test_nested_is_what_a_page_has():
    made = build(Whole, {"scale": 5, "rates": {"decay": 0.1}})
    assert nested(made)["rates"] == {"decay": 0.1}
    assert nested(made)["scale"] == 5.0
    assert build(Whole, nested(made)) == made


def test_a_command_line_gives_what_the_user_gave():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Whole, "up_", names={"rho": "power"})
    args = parser.parse_args(["--up_scale", "4", "--power", "2", "--up_quick", "--up_interval", "1", "2"])
    values = given(vars(args), Whole, "up_", names={"rho": "power"})
    assert values == {"scale": 4.0, "rho": 2.0, "quick": True, "interval": (1.0, 2.0)}
    assert build(Whole, values).part.interval == (1.0, 2.0)
    shown = parser.format_help()
    assert "a scale (default: 2.0)" in shown
    assert "a power (default 7)\n" in shown


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "3", 3),
        (float, "1e-4", 1e-4),
        (float, "inf", math.inf),
        (bool, "false", False),
        (str, "1", "1"),
        (float | None, "None", None),
        (tuple[int, ...], "(1, 2)", (1, 2)),
        (tuple[int, ...], "5", (5,)),
        (str | tuple[str, ...], "('a', 'b')", ("a", "b")),
        (str | tuple[str, ...], "a{0..3}.tar", "a{0..3}.tar"),
        (tuple[str, ...], "2024", ("2024",)),
        (tuple[str, ...], "none", ("none",)),
        (tuple[str, ...], "'a', 'b'", ("a", "b")),
        (tuple[str, ...], "()", ()),
        (tuple[float, float], "(0.5, inf)", (0.5, math.inf)),
        (tuple[float, ...], "-inf", (-math.inf,)),
        (Literal["none", "full"], "none", "none"),
    ],
)
def test_texts_of_a_command_line_become_values(hint, text, value):
    assert parse(hint, text, "x") == value


def test_a_text_of_another_type_is_one_line():
    with pytest.raises(GlideError, match=r"train\.max_steps cannot be 'many': it takes int"):
        parse(int, "many", "train.max_steps")


def test_tables_list_nested_options_too():
    rows = described(Whole)
    assert ("rates.decay", "0.5", "[0, 1)", "decay") in rows
    assert ("kind", "a", "a or b", "a kind") in rows
