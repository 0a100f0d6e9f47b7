"""Prior preservation (DreamBooth, Ruiz et al. 2022, arXiv:2208.12242), so that learning a few images
does not displace everything else.

The starting weights generate images of what they know, once, into RUN/prior. These make up half of the training images,
so that both halves of the loss have equal weight: the given ones are repeated until there are about as many. If more
than `count` are given, it is less than half.
"""

from dataclasses import replace
from pathlib import Path

import jax
from PIL import Image

from glide_jax import progress
from glide_jax.data import DataConfig, open_indexed
from glide_jax.data.examples import Images
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError
from glide_jax.files import written
from glide_jax.images import save_png
from glide_jax.sample import Pipeline
from glide_jax.train.config import RunConfig

_BATCH = 16


def with_prior(config: RunConfig) -> DataConfig:
    """The training data of a run with `train.prior.prompts`: the given folders and RUN/prior, which is filled first.

    Image i is made from prompt i modulo the number of prompts, and depends only on the weights, `train.seed` and
    `train.preview.options`. Images of these prompts that are there are kept, whatever they depended on; others of an
    earlier start are removed.

    Raises:
        GlideError: images are to be made by several processes or without starting weights, or the folder is unwritable.
    """
    prior, folder = config.train.prior, Path(config.run_dir).expanduser() / "prior"
    given = open_indexed(config.data)  # first, because it may be refused
    Images(given, config.data).check_few(Size(config.model.image_size, config.model.image_size))
    copies = max(1, round(prior.count / len(given)))
    wanted = {number: prior.prompts[number % len(prior.prompts)] for number in range(prior.count)}
    missing = {number: prompt for number, prompt in wanted.items() if not _is_there(folder, number, prompt)}
    surplus = [path for path in folder.glob("*") if path.stem.isdecimal() and int(path.stem) not in wanted]
    if (missing or surplus) and jax.process_count() > 1:
        raise GlideError(
            f"{folder} lacks {len(missing)} images, and has {len(surplus)} files too many: begin the run with one"
            " process, which makes them"
        )
    for path in surplus:
        path.unlink()
    if missing:
        _make(config, folder, missing)
    paths = (config.data.path,) if isinstance(config.data.path, str) else config.data.path
    return replace(config.data, path=(*paths * copies, str(folder)))


def _is_there(folder: Path, number: int, prompt: str) -> bool:
    image, text = folder / f"{number:04}.png", folder / f"{number:04}.txt"
    try:
        with Image.open(image) as opened:
            return text.read_text(encoding="utf-8") == opened.text["prompt"] == prompt  # type: ignore[attr-defined]
    except (OSError, ValueError, KeyError, SyntaxError):
        return False


def _make(config: RunConfig, folder: Path, prompts: dict[int, str]) -> None:
    if not config.init_from:
        raise GlideError(
            f"{folder} lacks {len(prompts)} images, which the starting weights make: give --config.init_from"
        )
    options = config.train.preview.options
    pipeline = Pipeline.from_checkpoints(config.init_from, batch_size=_BATCH)
    with progress.bar("generating the prior, evaluations", pipeline.count_evaluations(len(prompts), options)) as bar:
        batches = pipeline.batches(
            list(prompts.values()), list(prompts), options=options, seed=config.train.seed,
            on_steps=lambda done, _: bar.update(done), batch_size=_BATCH,
        )  # fmt: skip
        for samples in batches:
            for image, prompt, number in zip(samples.images, samples.prompts, samples.indices, strict=True):
                with written(folder / f"{number:04}.txt") as partial:
                    partial.write_text(prompt, encoding="utf-8")
                save_png(folder / f"{number:04}.png", image, {"prompt": prompt})
