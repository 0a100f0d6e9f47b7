"""Images of what the starting weights know: made once, as many as the given ones, the same whoever makes them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from glide_jax.data import DataConfig
from glide_jax.errors import GlideError
from glide_jax.sample import Pipeline, SampleOptions
from glide_jax.train import RunConfig
from glide_jax.train.config import PreviewConfig, PriorConfig, TrainConfig
from glide_jax.train.prior import with_prior
from glide_jax.train.start import StartPoint, training_data
from tests.tiny.models import INPAINT, save_model
from tests.tiny.training import MODEL, SIDE

OPTIONS = SampleOptions.of(num_steps=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("prior") / "base", MODEL)


@pytest.fixture
def config(base, tmp_path):
    """Two images of one colour, and five of two prompts to keep."""
    for number in range(2):
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), (200, 0, 0)).save(tmp_path / "mine" / f"{number}.png")
        (tmp_path / "mine" / f"{number}.txt").write_text("a zwx")
    train = TrainConfig(
        batch_size=4,
        seed=3,
        prior=PriorConfig(prompts=("a cat", "a dog"), count=5),
        preview=PreviewConfig(options=OPTIONS),
    )
    data = DataConfig(source="folder", path=str(tmp_path / "mine"), uncond_p=0.0)
    return RunConfig(run_dir=str(tmp_path / "run"), init_from=str(base), model=MODEL, data=data, train=train)


def test_they_are_half_of_what_is_trained_on(config, tmp_path):
    data = with_prior(config)
    assert data == replace(config.data, path=(str(tmp_path / "mine"),) * 2 + (str(tmp_path / "run" / "prior"),))
    with training_data(replace(config, data=data), StartPoint({})) as stream:
        batches = [next(stream) for _ in range(9)]  # four epochs of nine
    captions = [caption for batch in batches for caption in batch.captions]
    assert {name: captions.count(name) for name in set(captions)} == {"a zwx": 16, "a cat": 12, "a dog": 8}


def test_each_is_what_the_weights_draw_and_made_once(config, base, tmp_path):
    with_prior(config)
    folder = tmp_path / "run" / "prior"
    drawn = Pipeline.from_checkpoints(base)(["a cat", "a dog"] * 2 + ["a cat"], options=OPTIONS, seed=3).images
    made = np.stack([np.asarray(Image.open(folder / f"{number:04}.png")) for number in range(5)])
    assert (np.abs(made.astype(int) - drawn) <= 1).all()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    content = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(content[:60])
    with_prior(config)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"0003.png", "0003.txt"}
    assert (folder / "0003.png").read_bytes() == content
    assert set(before) == set(after)


def test_other_prompts_are_made_anew(config, tmp_path):
    with_prior(config)
    prior = replace(config.train.prior, prompts=("a cat", "a fox"))
    with_prior(replace(config, train=replace(config.train, prior=prior)))
    texts = [(tmp_path / "run" / "prior" / f"{number:04}.txt").read_text() for number in range(5)]
    assert texts == ["a cat", "a fox", "a cat", "a fox", "a cat"]
    prior = replace(prior, count=1)
    with_prior(replace(config, train=replace(config.train, prior=prior)))
    assert sorted(path.name for path in (tmp_path / "run" / "prior").iterdir()) == ["0000.png", "0000.txt"]


def test_without_weights_to_make_them_it_says_so(config):
    with pytest.raises(GlideError, match=r"prior lacks 5 images, .*: give --config\.init_from"):
        with_prior(replace(config, init_from=""))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": DataConfig(path="x.tar")}, "needs data.source=folder"),
        ({"data": DataConfig(source="folder", path="x", caption_key="filename")}, "captions in text files"),
        ({"model": INPAINT}, "a base model that does not inpaint"),
    ],
)
def test_where_there_is_no_prior_it_says_so(changes, said, config):
    with pytest.raises(GlideError, match=said):
        replace(config, **changes)


def test_a_missing_folder_is_refused_before_images_are_made(config, tmp_path):
    with pytest.raises(GlideError, match="/none is not a folder"):
        with_prior(replace(config, data=replace(config.data, path=str(tmp_path / "none"))))
    assert not (tmp_path / "run").exists()
