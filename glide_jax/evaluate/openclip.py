"""OpenCLIP models as scorers, through `open_clip_torch`."""

import contextlib
import difflib
import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from glide_jax.errors import GlideError, first_line, install
from glide_jax.evaluate.scorer import Images

_HELP = "give a local file with --clip_checkpoint FILE"


class ModelName(NamedTuple):
    """A model's name in OpenCLIP.

    Attributes:
        model: an architecture ("ViT-L-14"), "hf-hub:ORG/NAME" or "local-dir:FOLDER".
        pretrained: tag of its weights; None for the model's usual ones.
        note: says what was corrected, if anything.
    """

    model: str
    pretrained: str | None = None
    note: str | None = None


def parse_name(given: str, known: Collection[str]) -> ModelName:
    """Reads NAME, NAME/TAG or a folder; OpenAI's spelling with a slash ("ViT-L/14") is corrected.

    Args:
        given: as on the command line.
        known: OpenCLIP's architectures.

    Raises:
        GlideError: there is no such architecture.
    """
    if given.startswith(("hf-hub:", "local-dir:")):
        return ModelName(given)
    if Path(given).is_dir():
        return ModelName(f"local-dir:{given}")
    name, _, tag = given.partition("/")
    if name in known:
        return ModelName(name, tag or None)
    name, _, tag = given.replace("/", "-", 1).replace("@336px", "-336").partition("/")
    if name in known:
        return ModelName(name, tag or None, f"{given} is OpenAI's spelling: read as {name}{'/' * bool(tag)}{tag}")
    close = difflib.get_close_matches(name, known, 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "they look like ViT-L-14 or ViT-L-14/laion2b_s32b_b82k"
    raise GlideError(f"--clip_model {given}: OpenCLIP knows no such model; {hint}")


def find_model(given: str) -> ModelName:
    """`parse_name` for the installed OpenCLIP, with the tag filled in; loads nothing.

    Raises:
        GlideError: OpenCLIP cannot be imported, or knows no such model or tag.
    """
    open_clip = _import()
    name = parse_name(given, open_clip.list_models())
    if ":" in name.model:
        return name
    tags = open_clip.list_pretrained_tags_by_model(name.model)
    if name.pretrained is None:
        tag = "openai" if "openai" in tags else next(iter(tags), None)
        return name._replace(pretrained=tag)
    if name.pretrained not in tags and not Path(name.pretrained).is_file():
        raise GlideError(
            f"--clip_model {given}: {name.model} has no weights {name.pretrained!r}, but {', '.join(tags) or 'none'}"
        )
    return name


class OpenClipScorer:
    """An OpenCLIP model on torch's device, checked when it is loaded.

    Args:
        name: from `find_model`.
        checkpoint: file of weights to use instead of the published ones.
        batch_size: images at once.
        device: torch's name of a device; by default CUDA where torch has it.

    Raises:
        GlideError: the weights cannot be reached, read, or do not fit the model.
    """

    def __init__(
        self, name: ModelName, checkpoint: Path | None = None, batch_size: int = 16, device: str | None = None
    ) -> None:
        import torch  # noqa: PLC0415

        self._torch, self._batch = torch, batch_size
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        weights = str(checkpoint) if checkpoint is not None else name.pretrained
        # Records and pages are shared with others, and must not reveal local paths.
        kind, colon, folder = name.model.partition("local-dir:")
        self.name = f"OpenCLIP {kind}{colon}{Path(folder).name}" + (f"/{Path(weights).name}" if weights else "")
        if checkpoint is not None and not checkpoint.is_file():
            raise GlideError(f"--clip_checkpoint {checkpoint}: no such file")
        if ":" not in name.model and weights is None:
            raise GlideError(f"no weights of {name.model} are published: {_HELP}")
        try:
            with _quiet():
                self._model, self._preprocess, self._tokenize = _load(name.model, weights, self._device)
        except Exception as error:  # whatever a hub, a file system or a pickle throws
            reason = first_line(error).split(". ")[0]
            remedy = "it must be a state dict of this model" if checkpoint else _HELP
            raise GlideError(f"cannot load {self.name}: {reason[:200]}; {remedy}") from error
        self._check()

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """See `Scorer`."""
        features = []
        for first in range(0, len(images), self._batch):
            part = [self._preprocess(Image.fromarray(image)) for image in images[first : first + self._batch]]
            pixels = self._torch.stack(part).to(self._device)
            with self._torch.inference_mode():
                features.append(self._model.encode_image(pixels, normalize=True).float().cpu().numpy())
        if not features:
            raise GlideError("no images to score")
        return np.concatenate(features)

    def text_features(self, prompt: str) -> Float[np.ndarray, " features"]:
        """See `Scorer`."""
        with self._torch.inference_mode():
            tokens = self._tokenize([prompt]).to(self._device)
            return self._model.encode_text(tokens, normalize=True).float().cpu().numpy()[0]

    def _check(self) -> None:
        grey = np.full((1, 64, 64, 3), 128, np.uint8)
        features = [self.image_features(grey)[0], self.text_features("an image")]
        if not all(np.isfinite(feature).all() for feature in features):
            raise GlideError(f"{self.name} gives features that are not numbers: its weights are damaged")


def _load(model: str, weights: str | None, device: str) -> tuple[Any, Callable[[Image.Image], Any], Any]:
    open_clip = _import()
    # Some weights were trained with OpenAI's approximate GELU: their tag says so, and the architecture's name does not.
    tag = {} if weights is None or ":" in model else open_clip.get_pretrained_cfg(model, weights) or {}
    loaded, preprocess = open_clip.create_model_from_pretrained(
        model, weights, device=device, force_quick_gelu=bool(tag.get("quick_gelu"))
    )
    return loaded.eval(), preprocess, open_clip.get_tokenizer(model)


def _import() -> Any:
    try:
        import open_clip  # noqa: PLC0415
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit its torch
        raise GlideError(
            f"OpenCLIP cannot be imported ({first_line(error)}): {install('clip')}, or give --clip_model noised"
        ) from error
    return open_clip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences OpenCLIP's own messages: those that matter are raised as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
