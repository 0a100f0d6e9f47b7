"""What a pipeline's call is given: checked, and turned into one for each image."""

import inspect
import secrets
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, TypeGuard

import numpy as np

from glide_jax.errors import GlideError
from glide_jax.images import ImageSource
from glide_jax.options import nearest
from glide_jax.sample.image_inputs import load_inpainting
from glide_jax.sample.loading import LoadedModel
from glide_jax.sample.options import flag_fields
from glide_jax.sample.prompts import Prompt
from glide_jax.sample.stage import OnSteps
from glide_jax.tokenizer import GlideTokenizer

# Characters of a prompt's unseen end that a warning quotes.
_SHOWN_END = 60
_IMAGE_AXES = 3  # of an array, at most


def check_names(given: Iterable[str], function: Callable[..., Any]) -> None:
    """Raises `GlideError` for a name that is neither an argument of a pipeline's method nor, if it takes `changes`, a
    sampling option.
    """
    parameters = inspect.signature(function).parameters
    known = {name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD} - {"self", "prompts"}
    if "changes" in parameters:
        known |= flag_fields().keys()
    for name in given:
        if name not in known:
            raise GlideError(f"{name} is unknown; {nearest(name, known)}")


def check_weights(model: LoadedModel | None) -> None:
    """Raises `GlideError` if a model was loaded without weights."""
    if model is not None and not model.params:
        raise GlideError("this pipeline was loaded without weights, and can only check requests")


def inpainted(image: ImageSource | None, mask: ImageSource | None, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The image to inpaint and its mask as a model of that image size takes them; nothing without.

    Raises:
        GlideError: as for `load_inpainting`.
    """
    if image is None or mask is None:
        return {}
    pixels, kept = load_inpainting(image, mask, size)
    return {"inpaint_image": pixels, "inpaint_mask": kept}


def checked_size(model: LoadedModel, size: tuple[int, int] | None, what: str = "") -> tuple[int, int]:
    """Height and width; raises `GlideError` if the UNet cannot halve them as often as it needs to."""
    config = model.stage.model.config
    size = size or 2 * (config.image_size,)
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise GlideError(f"size must be (height, width), not {size!r}")
    height, width = size
    unit = config.unit
    if height < unit or width < unit or height % unit or width % unit:
        raise GlideError(f"height and width{what} must be multiples of {unit} for this model, not {height} and {width}")
    return height, width


def checked_noise(x_t: Any, count: int, size: tuple[int, int]) -> np.ndarray:
    """Noise to start from for each of `count` images; raises `GlideError` unless it is one for all, or one for each."""
    x_t = np.asarray(x_t)
    if x_t.shape[1:] != (*size, 3) or len(x_t) not in (1, count):
        height, width = size
        raise GlideError(
            f"x_t must be noise for one image or for each of {count}, [n, {height}, {width}, 3], not {list(x_t.shape)}"
        )
    return np.broadcast_to(x_t, (count, *x_t.shape[1:]))


def unseen(prompt: str, text_ctx: int) -> str:
    """A warning that a model with so many text tokens does not see the end of a prompt, or ""."""
    end = GlideTokenizer().truncated(prompt, text_ctx)
    shown = end if len(end) <= _SHOWN_END else f"{end[:_SHOWN_END]}..."
    return f"the prompt is too long for this model, which does not see its end: {shown!r}" if end else ""


def of_real(on_steps: OnSteps | None, real: int) -> OnSteps | None:
    """`on_steps`, told only of the first `real` images of a batch."""
    return None if on_steps is None else lambda steps, x_0: on_steps(steps * real, x_0[:real])


def one_per_image(prompts: Prompt | Sequence[Prompt], num_images: int) -> list[Prompt]:
    """The prompt of each image; raises `GlideError` if there is none, or one is no text."""
    prompts = [prompts] if isinstance(prompts, Prompt) or not isinstance(prompts, Iterable) else list(prompts)
    check_prompts(prompts)
    if not isinstance(num_images, Integral):
        raise GlideError(f"num_images must be a whole number, not {num_images!r:.100}")
    if not prompts or num_images < 1:
        raise GlideError("nothing to generate: give at least one prompt and num_images of at least 1")
    return [prompt for prompt in prompts for _ in range(num_images)]


def check_prompts(prompts: Iterable[object]) -> None:
    """Raises `GlideError` if one is no prompt."""
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise GlideError(f"a prompt is a text, not {prompt!r:.100}")


def check_numbers(numbers: Sequence[int], count: int) -> None:
    """Raises `GlideError` if there are not `count` image numbers, all in [0, 2^31)."""
    if len(numbers) != count or not all(0 <= number < 2**31 for number in numbers):
        raise GlideError(f"indices must be {count} numbers in [0, 2^31), one for each image")


def checked_seed(seed: int | None) -> int:
    """The seed, or a random one for None; raises `GlideError` if it is not in [0, 2^31)."""
    if seed is None:
        return secrets.randbelow(2**31)
    if not isinstance(seed, Integral) or not 0 <= seed < 2**31:
        raise GlideError(f"seed must be in [0, 2^31), a whole number or None, not {seed!r:.100}")
    return int(seed)


def is_image(given: object) -> TypeGuard[ImageSource]:
    """Whether this is one image, and not several."""
    return isinstance(given, ImageSource) and not (isinstance(given, np.ndarray) and given.ndim > _IMAGE_AXES)


def is_one(given: object) -> bool:
    """Whether this is one prompt or image for all, or none."""
    return given is None or isinstance(given, Prompt) or is_image(given) or not isinstance(given, Iterable)


def repeated(given: Any, times: int) -> Any:
    """What is given for each prompt, for each image of it; one for all stays as it is."""
    return given if is_one(given) else [each for each in given for _ in range(int(times))]


def one_each(name: str, given: Any, count: int) -> list[Any] | None:
    """What is given for each of `count` images, or None if it is the same for all.

    Raises:
        GlideError: there are more or fewer; `name` says of what.
    """
    if is_one(given):
        return None
    if len(given) != count:
        raise GlideError(f"{len(given)} of {name} for {count} images: give one for all, or one for each")
    return list(given)
