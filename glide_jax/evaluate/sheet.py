"""All kept images on one page: grids, and an HTML contact sheet."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from glide_jax.evaluate.run_folder import PromptRecord, RunFolder, save_image, write_text
from glide_jax.images import grid

# Cells per grid: larger ones are too big to open, so there are several.
_MOST_CELLS = 144
_SMALLEST_CELL = 64

_STYLE = """\
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: #fff; color: #222; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; }
figure { margin: 0; } figcaption { font-size: .8rem; color: #666; }
img { width: 160px; height: 160px; image-rendering: auto; display: block; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } figcaption { color: #999; } }
"""


def write_sheet(folder: RunFolder, records: Sequence[PromptRecord], suffix: str, facts: Sequence[str]) -> None:
    """Writes the grids and index.html for all prompts done.

    Args:
        folder: of the evaluation.
        records: of the prompts done.
        suffix: of the grids, as ".jpg".
        facts: lines about the run, shown at the top.
    """
    _write_grids(folder, records, suffix)
    sections = "\n".join(_section(folder, record) for record in records)
    head = "".join(f"<p>{escape(fact)}</p>\n" for fact in facts)
    title = escape(f"{len(records)} prompts, run {folder.path.name}")
    write_text(folder.path / "index.html", (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{head}{sections}\n</body>\n</html>\n"
    ))  # fmt: skip


def _write_grids(folder: RunFolder, records: Sequence[PromptRecord], suffix: str) -> None:
    for stale in [*folder.path.glob("grid*.jpg"), *folder.path.glob("grid*.png")]:
        stale.unlink()
    entries = [(record, i) for record in records for i in range(len(record.kept))]
    pages = [entries[first : first + _MOST_CELLS] for first in range(0, len(entries), _MOST_CELLS)]
    for number, page in enumerate(pages, start=1):
        by_prompt = {record.prompt_idx: record for record, _ in page}
        shown = {index: folder.images(record) for index, record in by_prompt.items()}
        cells = [shown[record.prompt_idx][i] for record, i in page]
        sheet = grid(cells, [record.prompt for record, _ in page], cell=_SMALLEST_CELL)
        name = "grid" if len(pages) == 1 else f"grid_{number:03d}"
        save_image(folder.path / f"{name}{suffix}", sheet)


def _section(folder: RunFolder, record: PromptRecord) -> str:
    place = Path(folder.prompt_folder(record.prompt_idx).name)
    figures = "".join(
        f'<figure><a href="{quote(str(place / str(kept.filename)))}"><img loading="lazy" '
        f'src="{quote(str(place / str(kept.filename)))}" alt="{escape(record.prompt)}"></a>'
        f"<figcaption>{_caption(kept.rank, kept.clip_score, kept.index)}</figcaption></figure>\n"
        for kept in record.kept
    )
    more = len(record.candidates) - len(record.kept)
    note = f" <small>(best of {len(record.candidates)})</small>" if more else ""
    return f'<h2>{record.prompt_idx}. {escape(record.prompt)}{note}</h2>\n<div class="row">\n{figures}</div>'


def _caption(rank: int, score: float | None, index: int) -> str:
    return f"#{rank}, image {index}" if score is None else f"#{rank}, {score:.4f}, image {index}"
