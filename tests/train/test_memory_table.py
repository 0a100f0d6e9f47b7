"""The table of docs/training.md is what the sharding rule gives."""

import importlib
import re

import pytest
from jax.sharding import AbstractMesh

from glide_jax.config import from_ml_collections
from glide_jax.parallel import bytes_per_device, make_mesh, state_shardings, with_shardings
from glide_jax.train.program import Program
from tests.parallel.processes import ROOT

ROWS = re.findall(
    r"^\| `(\w+)` \| (\d+) x (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
    (ROOT / "docs" / "training.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize("page", ["glide_base", "glide_upsample"])
def test_megabytes_on_each_device(page):
    config = from_ml_collections(importlib.import_module(f"configs.{page}").get_config())
    state = Program(config, make_mesh(config.parallel)).abstract_state
    rows = [row for row in ROWS if row[0] == page]
    assert len(rows) >= 4
    for _, data, fsdp, *figures in rows:
        mesh = AbstractMesh((int(data), int(fsdp)), ("data", "fsdp"))
        placed = with_shardings(state, state_shardings(state, mesh))
        sizes = [bytes_per_device(placed[part]) for part in ("params", "ema", "opt")]
        assert figures == [f"{size / 1e6:.0f}" for size in (*sizes, sum(sizes))], (data, fsdp)
