"""What comes of choosing other models and adapters on the page."""

import shutil

import pytest

from glide_jax.errors import GlideError
from glide_jax.ui.menus import switched, undone
from glide_jax.ui.models import Models
from glide_jax.ui.request import Choice, Limits
from glide_jax.ui.service import Service
from tests.tiny.models import save_lora
from tests.ui.conftest import cut_arrays


@pytest.fixture(scope="module")
def service(folder, tmp_path_factory):
    """Where "few" are adapters with settings of their own."""
    more = tmp_path_factory.mktemp("more")
    save_lora(more / "few", folder / "base", sampling={"sampler": "lms", "num_steps": 4})
    cut_arrays(shutil.copytree(folder / "base", more / "broken"))
    return Service(Models([], [folder, more]), "base", "", Limits())


def settings(found):
    return {name: field.default for name, field in found.settings.items()}


def test_settings_follow_the_models_that_bring_others(service):
    other = switched(service, {"base": "inpaint", "upsampler": "more/up"}, service.start)
    assert other.choice == Choice("inpaint", "more/up")
    assert settings(other) == {"num_steps": 50, "upsampler_num_steps": 2}
    back = switched(service, {"base": "base"}, other.choice)
    assert settings(back) == {"num_steps": 3, "upsampler_num_steps": None}
    assert settings(switched(service, {"base": "base"}, back.choice)) == {}


def test_settings_follow_adapters_too(service):
    few = switched(service, {"base": "base", "lora": ["few"]}, service.start)
    assert settings(few) == {"sampler": "lms", "num_steps": 4}
    assert "lms" in few.settings["sampler"].option.choices
    assert settings(switched(service, {"base": "base", "lora": ["few", "lora"]}, few.choice)) == {}


def test_adapters_are_offered_where_they_fit_and_keep_their_scale(service):
    both = switched(service, {"base": "base", "lora": ["few", "lora"]}, service.start)
    assert (both.fitting, both.choice.adapters) == (["lora", "few"], ("few", "lora"))
    assert both.scales == {0: 1.0, 1: 1.0}
    one = switched(service, {"base": "base", "lora": ["lora"], "lora_scale": 0.3, "lora_scale_2": 0.8}, both.choice)
    assert one.scales == {0: 0.8}
    assert switched(service, {"base": "base", "lora": ["lora"], "lora_scale": 0.5}, one.choice).scales == {}
    other = switched(service, {"base": "inpaint", "lora": ["lora"]}, one.choice)
    assert (other.fitting, other.choice) == ([], Choice("inpaint"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base": "broken"}, "broken could not be loaded"),
        ({"base": "gone"}, "there is no model"),
        ({"base": ["base"]}, "base must be text"),
        ({"base": "base", "lora": list("abcd")}, "4 LoRAs are too many"),
    ],
)
def test_what_cannot_be_chosen_is_said(service, values, said):
    with pytest.raises(GlideError, match=said):
        switched(service, values, service.start)


def test_a_choice_that_failed_takes_back_only_itself():
    before, sent = Choice("base", "", ("few",)), ["broken", "", ["few"]]
    assert undone(before, sent, sent) == {0: "base", 1: "", 2: ["few"]}
    assert undone(before, sent, ["inpaint", "up", ["few"]]) == {2: ["few"]}
    assert undone(before, sent, ["broken", "up", ["few", "lora"]]) == {0: "base"}
