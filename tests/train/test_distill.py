"""What a student is to predict: where several guided steps of its teacher end."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.data import DataConfig
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.errors import GlideError
from glide_jax.models import Conditioning, Glide, LoraConfig
from glide_jax.tokenizer import GlideTokenizer
from glide_jax.train.config import DistillConfig, LossConfig, RunConfig, TrainConfig
from glide_jax.train.distill import Teacher
from glide_jax.train.start import StartPoint
from tests.tiny.models import BASE, random_weights, save_model

V = DiffusionConfig(prediction_type="v_prediction")
SCHEDULE = Schedule.from_config(V)
MODEL = Glide(BASE)
CAPTIONS = ["a cat", "a dog in a hat"]


def levels(begin, end, steps):
    """Timestep, alpha and sigma from one timestep evenly to another; None is the clean image."""
    for t in np.linspace(begin, end or 0, steps + 1):
        ratio = np.exp(np.interp(t, np.arange(1000), np.log(SCHEDULE.sigmas)))
        yield t, 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)
    if end is None:
        yield 0, 1.0, 0.0


@jax.jit
def v_of(params, x, t, tokens, mask):
    return MODEL(params, x, t, Conditioning(MODEL.encode_text(params, tokens, mask)))[..., :3]


def guided_ddim(params, x, caption, begin, end, steps, scale):
    """Plain DDIM with a call for each prediction."""

    def v(t, text):
        return v_of(params, x, jnp.full(1, t, jnp.float32), *GlideTokenizer().padded([text], BASE.text_ctx))

    visited = list(levels(begin, end, steps))
    visited = visited[:steps] + visited[-1:]
    for (t, alpha, sigma), (_, next_alpha, next_sigma) in pairwise(visited):
        x_0 = jnp.clip(alpha * x - sigma * (scale * v(t, caption) + (1 - scale) * v(t, "")), -1, 1)
        x = next_alpha * x_0 + next_sigma * (x - alpha * x_0) / sigma
    return np.asarray(x), visited[0][1:], visited[-1][1:]


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_one_step_by_the_target_ends_where_the_teacher_does(scale):
    params = jax.tree.map(jnp.asarray, random_weights(MODEL.abstract_params()))
    teacher = Teacher(MODEL, SCHEDULE, DistillConfig(num_steps=2, teacher_steps=3, guidance_scale=scale))
    x_t = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    tokens, mask = map(jnp.asarray, GlideTokenizer().padded(CAPTIONS, BASE.text_ctx))

    @jax.jit
    def target(params, x_t, t):
        condition = lambda text, rows: Conditioning(text)  # noqa: E731
        return teacher.target(params | {"lora": "of no account"}, tokens, mask, condition, x_t, t)

    x_0, noise = target(params, x_t, jnp.array([999, 499]))
    for row, (begin, end) in enumerate(((999, 499), (499, None))):
        expected, (alpha, sigma), (next_alpha, next_sigma) = guided_ddim(
            params, x_t[row : row + 1], CAPTIONS[row], begin, end, 3, scale
        )
        np.testing.assert_allclose(next_alpha * x_0[row] + next_sigma * noise[row], expected[0], atol=2e-5)
        np.testing.assert_allclose(alpha * x_0[row] + sigma * noise[row], x_t[row], atol=1e-5)
    assert np.abs(x_0[1]).max() <= 1.0


def test_all_of_the_students_levels_are_learnt_equally():
    teacher = Teacher(MODEL, SCHEDULE, DistillConfig(num_steps=4))
    found, counts = np.unique(teacher.timesteps(jnp.arange(1000)), return_counts=True)
    assert found.tolist() == [249, 499, 749, 999]
    assert set(counts) == {250}


@pytest.mark.parametrize(
    ("changes", "diffusion", "message"),
    [
        ({"lora": LoraConfig()}, V, "give train.lora.rank"),
        ({"loss": LossConfig("hybrid")}, V, "use train.loss.kind=simple"),
        ({}, DiffusionConfig(), "needs diffusion.prediction_type=v_prediction"),
        ({"validate_every": 5}, V, "use train.validate_every=0"),
        ({"loss": LossConfig(velocity_cap=5.0), "distill": DistillConfig()}, V, "use train.loss.velocity_cap=0"),
    ],
)
def test_what_a_student_or_a_prediction_of_v_does_not_go_with_is_said(changes, diffusion, message):
    options = {"lora": LoraConfig(rank=2), "distill": DistillConfig(num_steps=2)} | changes
    with pytest.raises(GlideError, match=message):
        RunConfig(train=TrainConfig(**options), diffusion=diffusion, data=DataConfig(validation_path="a.tar"))


def test_a_teacher_of_the_noise_is_refused(tmp_path):
    train = TrainConfig(lora=LoraConfig(rank=2), distill=DistillConfig(num_steps=2))
    run = RunConfig(
        train=train, model=BASE, run_dir=str(tmp_path / "run"), init_from=save_model(tmp_path / "base"), diffusion=V
    )
    with pytest.raises(GlideError, match="prediction_type is epsilon there, v_prediction here"):
        StartPoint.of(run)
