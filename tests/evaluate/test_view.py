"""What a person reads of an evaluation: tables on a terminal, plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from glide_jax.evaluate import Job
from glide_jax.evaluate.run_folder import PromptRecord, ranked
from glide_jax.evaluate.view import View, device_facts

JOB = Job(("a [bold] cat", "a dog"), num_images=4)
SCORES = [0.1, 0.4, 0.2, 0.3]


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def record(scores):
    candidates = tuple(ranked(JOB.numbers(0), 7, scores, keep=2, suffix=".png"))
    return PromptRecord(JOB.prompts[0], 0, "clip" if scores else None, {}, candidates)


def show_everything(view):
    view.facts("evaluation", {"checkpoint": "runs/[x]", **device_facts()})
    view.results(record(SCORES), of=2)
    return view.console.file.getvalue()


def test_a_terminal_gets_tables(terminal):
    shown = show_everything(View(terminal))
    for text in ("│ checkpoint", "runs/[x]", "(cpu)", "a [bold] cat"):
        assert text in shown
    ranks = [line.split("│")[1:4] for line in shown.splitlines() if line.startswith(("│ 1 ", "│ 2 "))]
    assert [[cell.strip() for cell in rank] for rank in ranks] == [["1", "0.4000", "1"], ["2", "0.3000", "3"]]


def test_elsewhere_there_are_plain_lines():
    shown = show_everything(View(Console(file=io.StringIO(), width=60)))
    assert "checkpoint: runs/[x]\n" in shown
    assert "prompt 1/2: 2 of 4 kept, best 0.4000 (image 1): a [bold] cat\n" in shown
    assert "│" not in shown


def test_without_scores_a_line_says_what_was_kept(terminal):
    view = View(terminal)
    view.results(record(None), of=2)
    assert terminal.file.getvalue() == "prompt 1/2: 2 of 4 kept: a [bold] cat\n"
