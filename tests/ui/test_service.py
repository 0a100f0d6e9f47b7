import contextlib
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.evaluate import NoisedClipScorer
from glide_jax.evaluate.scorer import score
from glide_jax.images import grid
from glide_jax.sample import Axis, LoadedClip
from glide_jax.sample.cli import parser
from glide_jax.sample.compare import cells, compare
from glide_jax.ui.models import Models
from glide_jax.ui.request import Limits
from glide_jax.ui.service import Service, follow
from tests.tiny.models import save_lora
from tests.ui.test_worker import concurrently


@pytest.fixture(scope="module")
def service(models, folder):
    scorer = NoisedClipScorer(LoadedClip.from_checkpoints(folder / "clip" / "text", folder / "clip" / "image"))
    return Service(models, "base", "", Limits(), scorer)


def ask(**values):
    return {"base": "base", "prompt": "a cat", "num_images": 2, "num_steps": 4, "seed": 1} | values


def generated(service, task="draw", **values):
    """The last state shown, and its files' pixels and entries, read before they go."""
    pixels, entries = [], []
    for shown in follow(service, task, ask(**values)):
        last = shown
        if shown.download is not None:
            for path, _ in shown.images:
                with Image.open(path) as image:
                    pixels.append(np.asarray(image))
                    entries.append(image.text)
    return last, np.stack(pixels), entries


def test_previews_come_before_the_images(service):
    states = list(follow(service, "draw", ask(num_images=3)))
    previews = [shown.images for shown in states if shown.images and shown.download is None]
    assert len(previews) == 8  # two batches of two, a report each step
    assert {len(images) for images in previews} == {2, 3}
    assert previews[0][0].shape == (8, 8, 3)
    assert len(states[-1].images) == 3
    assert "3 images of 8 x 8 pixels" in states[-1].status
    assert {shown.seed for shown in states} == {1}


def test_images_are_those_of_the_command_line(service, models):
    _, pixels, entries = generated(service, num_images=3, sampler="dpmpp_2m", negative_prompt="a dog")
    expected = models.pipeline("base", None)(
        "a cat", num_images=3, seed=1, num_steps=4, sampler="dpmpp_2m", negative_prompt="a dog"
    )
    np.testing.assert_array_equal(pixels, expected.images)
    assert [entry["index"] for entry in entries] == list("012")
    assert entries[0] == {
        "prompt": "a cat", "seed": "1", "index": "0", "sampler": "dpmpp_2m", "num_steps": "4", "schedule": "karras",
        "guidance_scale": "3.0", "checkpoint": "base", "negative_prompt": "a dog",
    }  # fmt: skip


def test_a_client_that_names_no_steps_gets_those_of_the_model_it_chooses(service):
    other = replace(service, base="inpaint")
    for steps, expected in ((None, "3"), (4, "4")):
        _, _, entries = generated(other, num_steps=steps)
        assert entries[0]["num_steps"] == expected
    assert other.fields["num_steps"].default == 50


def test_the_seed_shown_generates_the_same_again(service):
    first, pixels, _ = generated(service, seed="")
    again, same, _ = generated(service, seed=first.seed)
    np.testing.assert_array_equal(pixels, same)
    assert again.seed == first.seed


def test_an_upsampler_enlarges(service):
    _, pixels, entries = generated(service, num_images=1, upsampler="more/up", upsampler_num_steps="3")
    assert pixels.shape == (1, 16, 16, 3)
    assert (entries[0]["upsampler"], entries[0]["upsampler_num_steps"]) == ("more/up", "3")


def test_an_uploaded_image_is_enlarged(service):
    image = Image.new("RGBA", (40, 30), "red")
    values = {"upsampler": "more/up", "upsampler_num_steps": "3", "prompt": "", "base": "gone"}
    _, pixels, entries = generated(service, "enlarge", image=image, **values)
    assert pixels.shape == (1, 16, 16, 3)
    assert "sampler" not in entries[0]


def test_image_to_image_goes_as_far_as_strength_says(service):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    same = generated(service, "redraw", image=image, strength=0)[1]
    np.testing.assert_array_equal(same[0], np.asarray(image))
    assert (generated(service, "redraw", image=image, strength=0.8, num_steps=5)[1][0] != same[0]).mean() > 0.5


def test_inpainting_keeps_what_is_not_painted(service):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    mask = Image.new("L", (8, 8), 255)
    mask.paste(0, (0, 0, 4, 8))
    pixels = generated(service, "inpaint", base="inpaint", image=image, mask=mask)[1]
    np.testing.assert_array_equal(pixels[0, :, 4:], np.asarray(image)[:, 4:])
    assert (pixels[0, :, :4] != np.asarray(image)[:, :4]).mean() > 0.5


def test_ranking_shows_the_best_first(service):
    last, pixels, entries = generated(service, "rank", candidates=5, top_k=3)
    candidates = generated(service, num_images=5)[1]
    scores = score(service.scorer, candidates, "a cat")
    best = np.argsort(-scores)[:3]
    np.testing.assert_array_equal(pixels, candidates[best])
    assert [entry["index"] for entry in entries] == [str(i) for i in best]
    assert [caption for _, caption in last.images] == [f"{value:.3f}" for value in scores[best]]


def test_several_images_are_downloaded_in_one_file(service):
    with contextlib.closing(follow(service, "draw", ask())) as states:
        last = next(shown for shown in states if shown.download)
        names = zipfile.ZipFile(last.download).namelist()
        assert names == ["glide-1-00.png", "glide-1-01.png"] == [path.name for path, _ in last.images]
        folder = last.download.parent
        assert folder.is_dir()
    assert not folder.exists()


def test_closing_stops_the_work(service):
    """The next request begins only when the one before has ended."""
    patient = replace(service, limits=Limits(max_images=50))
    states = follow(patient, "draw", ask(num_images=50))
    next(shown for shown in states if shown.images)
    begun = time.monotonic()
    states.close()
    generated(service)
    stopped = time.monotonic() - begun
    begun = time.monotonic()
    list(follow(patient, "draw", ask(num_images=50)))
    assert stopped < 0.3 * (time.monotonic() - begun)


def test_two_at_once_do_not_mix(service):
    asks = [
        {"prompt": "a cat"},
        {"prompt": "a dog", "sampler": "dpmpp_2m", "seed": 2},
        {"base": "inpaint", "num_images": 3},
    ]
    alone = [generated(service, **values) for values in asks]
    together = concurrently(*[lambda values=values: generated(service, **values) for values in asks])
    for (_, pixels, entries), (_, same, same_entries) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(pixels, same)
        assert entries == same_entries


def test_what_cannot_be_is_said_before_anything_is_generated(service):
    for task, values, message in (
        ("draw", {"base": "gone"}, "there is no model 'gone'"),
        ("draw", {"base": ""}, "choose a base model"),
        ("enlarge", {"image": Image.new("RGBA", (8, 8))}, "choose an upsampler"),
        ("draw", {"num_images": 10**9}, r"num_images must be in \[1, 8\]"),
    ):
        with pytest.raises(GlideError, match=message):
            list(follow(service, task, ask(**values)))


def test_the_end_of_a_long_prompt_is_named(service):
    last, _, _ = generated(service, prompt="a cat and <b>" + "a dog " * 9)
    assert "too long for this model, which does not see its end:" in last.status
    assert "<b>" not in last.status
    assert (
        "Note: num_steps 4 with schedule leading starts from noise alone at t = 750, where the model expects 14% of"
        in last.status
    )


def test_adapters_are_added_by_their_scale(service, models):
    _, pixels, entries = generated(service, lora="lora", lora_scale=0.5)
    adapted, plain = (models.pipeline("base", None, {"lora": scale}) for scale in (0.5, 0))
    how = {"num_images": 2, "seed": 1, "num_steps": 4}
    np.testing.assert_array_equal(pixels, adapted("a cat", **how).images)
    assert (pixels != plain("a cat", **how).images).any()
    assert [entry["lora"] for entry in entries] == ["lora:0.5"] * 2
    with pytest.raises(GlideError, match="no LoRA 'lora' for inpaint"):
        generated(service, base="inpaint", lora="lora")


def test_what_the_page_opens_with_is_let_go_beside_another_base_model(service):
    started = replace(service, adapters=("lora",))
    for values, expected in (
        ({"base": "inpaint", "lora": ["lora"]}, []),
        ({"base": "base", "lora": ["lora"]}, ["lora"]),
        ({"base": "inpaint", "lora": ["other"]}, ["other"]),
    ):
        assert started.for_its_base(values)["lora"] == expected


def test_a_grid_is_that_of_the_command_line(service, models):
    sent = {"x_option": "num_steps", "x_values": "3, 4", "y_option": "guidance_scale", "y_values": "2,3"}
    last, pixels, entries = generated(service, "compare", **sent, temperature=0.9, negative_prompt="a dog")
    assert "4 images in a grid of 268 x " in last.status
    axes = [Axis.parse("num_steps=3,4"), Axis.parse("guidance_scale=2,3")]
    flags = vars(parser().parse_args(["--checkpoint", "base", "--seed", "1", "--temperature", "0.9"]))
    wanted = cells(axes, flags | {"strength": None}, {})
    expected, _ = compare(models.pipeline("base", None), "a cat", wanted, 2, negative_prompt="a dog")
    np.testing.assert_array_equal(pixels[0], expected)
    assert last.images[0][0].name == "glide-1-grid.png"
    assert entries[0] == {
        "prompt": "a cat", "seed": "1", "index": "0", "xy": "num_steps=3,4 guidance_scale=2.0,3.0", "sampler": "ddim",
        "schedule": "leading", "temperature": "0.9", "checkpoint": "base", "negative_prompt": "a dog",
    }  # fmt: skip


def test_a_grid_may_vary_the_strength_of_a_lora(service, models):
    sent = {"lora": "lora", "x_option": "lora_scale", "x_values": "0, 0.5"}
    _, pixels, entries = generated(service, "compare", **sent)
    how = {"seed": 1, "num_steps": 4}
    each = [models.pipeline("base", None, {"lora": scale})("a cat", **how).images[0] for scale in (0, 0.5)]
    assert (each[0] != each[1]).any()
    labelled = [f"lora_scale {scale}" for scale in (0.0, 0.5)]
    np.testing.assert_array_equal(pixels[0], grid(each, labelled, columns=2, cell=128))
    assert (entries[0]["lora"], entries[0]["xy"]) == ("lora", "lora_scale=0.0,0.5")


def test_a_grid_is_of_the_models_that_were_there_when_it_began(folder, tmp_path):
    save_lora(tmp_path / "mine", folder / "base")
    models, base = Models([folder / "base"], [tmp_path]), f"{folder.name}/base"
    models.pipeline(base, None, {"mine": 0.5})
    sent = ask(base=base, lora="mine", x_option="lora_scale", x_values="0.5,1")
    states = follow(Service(models, base), "compare", sent)
    next(states)
    (tmp_path / "mine").rename(tmp_path / "gone")
    assert "2 images in a grid" in list(states)[-1].status


def test_a_grid_counts_every_image_and_shows_each(service):
    states = list(follow(service, "compare", ask(x_option="seed", x_values="1,2,3")))
    previews = [shown.images for shown in states if shown.images and shown.download is None]
    assert {len(images) for images in previews} == {1, 2, 3}
    assert {shown.seed for shown in states} == {None}
    assert states[-1].images[0][0].name == "glide-seeds-grid.png"
    assert not any("Compiling" in shown.status for shown in states[-3:])
    assert (
        max(float(shown.status.split("width: ")[1].split("%")[0]) for shown in states if "width" in shown.status) == 100
    )
