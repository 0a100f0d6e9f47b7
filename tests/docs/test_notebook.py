"""The notebook runs from top to bottom."""

import os

import pytest

from tests.programs import ROOT

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: uv sync --group docs")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_notebook_runs_and_learns(monkeypatch):
    import nbclient

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    shorter = {
        "max_steps = 500": "max_steps = 90", "num_steps=50": "num_steps=5", "[-100:]": "[-30:]", "% 100": "% 30",
        "channel_mult = (1, 2)": "channel_mult = (1,)", "attention_resolutions = (8,)": "attention_resolutions = ()",
    }  # fmt: skip
    for cell in notebook.cells:
        for written, instead in shorter.items():
            cell.source = cell.source.replace(written, instead)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
    printed = "".join(output.text for cell in code for output in cell.outputs if output.output_type == "stream")
    first, *_, last = (float(line.split()[-1]) for line in printed.splitlines() if "squared error of the noise" in line)
    assert last < first / 2


def test_what_is_committed_is_small():
    notebook = ROOT / "docs" / "notebook.ipynb"
    assert notebook.stat().st_size < 200_000
