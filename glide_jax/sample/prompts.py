"""Prompts of more than one text: weighted words, and interpolation from one prompt to another.

Everything the UNet gets from a text (the vector added to the time embedding, and each block's keys and values) is an
affine function of the text transformer's output, so texts can be mixed after encoding.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from glide_jax.errors import GlideError

# Text, or words with a weight in brackets, or a stray bracket.
_PIECES = re.compile(r"((?:\\[()]|[^()])+)|\(((?:\\[()]|[^()])*):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|([()])", re.ASCII)
_ESCAPED = re.compile(r"\\([()])")
_MOST = 100


class Text(NamedTuple):
    """A text with some characters hidden: their tokens are replaced by padding.

    Attributes:
        text: the text; lower-cased if some of it is hidden.
        unseen: [first, end) of the characters, as `GlideTokenizer.touched` takes them.
    """

    text: str
    unseen: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Blend:
    """Texts with weights that sum to 1, to be mixed after encoding.

    Attributes:
        label: what to call it in the names of images.
        parts: the texts and their weights, which may be negative.
    """

    label: str
    parts: tuple[tuple[Text, float], ...]

    def __str__(self) -> str:
        return self.label


Prompt = str | Blend


def parts(prompt: Prompt) -> tuple[tuple[Text, float], ...]:
    """The texts of a prompt and their weights; a plain prompt is a single text."""
    return prompt.parts if isinstance(prompt, Blend) else ((Text(prompt), 1.0),)


def texts(prompts: Iterable[Prompt]) -> list[str]:
    """The distinct texts of the prompts."""
    return list(dict.fromkeys(text.text for prompt in prompts for text, _ in parts(prompt)))


def weighted(prompt: str) -> Prompt:
    r"""A prompt with stressed or weakened words, "a (red:1.5) bicycle"; literal brackets are \( and \).

    Its encoding is E + sum_i (w_i - 1) (E - E_i), where E encodes the whole text and E_i the text without the words of
    weight w_i: 1 is the text as it is, 0 leaves the words out, and above 1 extrapolates, like guidance.

    Raises:
        GlideError: brackets without words or a number, nested brackets, or a weight beyond 100.
    """
    text, spans = "", []
    for plain, words, number, stray in _PIECES.findall(prompt):
        if stray or not (plain or words.strip()):
            raise GlideError(f"prompt weights: brackets must be as (red:1.5), or \\( and \\) in the text: {prompt!r}")
        first = len(text.lower())
        text += _ESCAPED.sub(r"\1", plain or words)
        if number:
            spans.append(((first, len(text.lower())), _weight(number)))
    without = [(Text(text.lower(), (span,)), 1 - weight) for span, weight in spans if weight != 1]
    if not without:
        return text
    return Blend(prompt, ((Text(text.lower()), 1 - sum(share for _, share in without)), *without))


def _weight(number: str) -> float:
    weight = float(number)
    if abs(weight) > _MOST:
        raise GlideError(f"prompt weights: {number} must be from -{_MOST} to {_MOST}")
    return weight


def interpolated(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` prompts from each of `prompts` to the next, both included: n prompts give (n - 1) (count - 1) + 1.

    Raises:
        GlideError: fewer than two prompts, or a count below 2.
    """
    if len(prompts) < 2 or count < 2:
        raise GlideError("interpolation needs two prompts or more, and at least 2 images from one to the next")
    return [*_between(prompts, count), prompts[-1]]


def _between(prompts: Sequence[Prompt], count: int) -> Iterator[Prompt]:
    for first, second in itertools.pairwise(prompts):
        yield first
        for i in range(1, count - 1):
            share = i / (count - 1)
            own = [(text, weight * (1 - share)) for text, weight in parts(first)]
            other = [(text, weight * share) for text, weight in parts(second)]
            yield Blend(f"{100 - 100 * share:.4g}% {first}\n{100 * share:.4g}% {second}", (*own, *other))
