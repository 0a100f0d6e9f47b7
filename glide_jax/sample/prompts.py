"""Prompts that are more than one text: words of other weights, and the way from one prompt to another.

All that a UNet is given of a text (the vector added to the time embedding, and per block keys and values) is an affine
function of the text transformer's output, so that texts can be mixed after they are encoded.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from glide_jax.errors import GlideError

# Text, or words and their weight in brackets, or a bracket that is neither.
_PIECES = re.compile(r"((?:\\[()]|[^()])+)|\(((?:\\[()]|[^()])*):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|([()])", re.ASCII)
_ESCAPED = re.compile(r"\\([()])")
_MOST = 100


class Text(NamedTuple):
    """A text of which some characters are not seen: their tokens are padding, in their places.

    Attributes:
        text: as it is; lower-cased where some of it is not seen.
        unseen: [first, end) of the characters, as `GlideTokenizer.touched` takes them.
    """

    text: str
    unseen: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Blend:
    """Texts with weights of sum 1, to be mixed after they are encoded.

    Attributes:
        label: what stands for it where images are named.
        parts: the texts and their weights, which may be negative.
    """

    label: str
    parts: tuple[tuple[Text, float], ...]

    def __str__(self) -> str:
        return self.label


Prompt = str | Blend


def parts(prompt: Prompt) -> tuple[tuple[Text, float], ...]:
    """The texts of a prompt and their weights; a plain prompt is one."""
    return prompt.parts if isinstance(prompt, Blend) else ((Text(prompt), 1.0),)


def texts(prompts: Iterable[Prompt]) -> list[str]:
    """The distinct texts of some prompts, each once."""
    return list(dict.fromkeys(text.text for prompt in prompts for text, _ in parts(prompt)))


def weighted(prompt: str) -> Prompt:
    r"""A prompt whose words may be stressed or weakened: "a (red:1.5) bicycle"; brackets of the text are \( and \).

    E + sum_i (w_i - 1) (E - E_i), with E the whole text encoded and E_i the text without the words of weight w_i: 1 is
    the text as it is, 0 without them, and beyond 1 away from there, as guidance does.

    Raises:
        GlideError: brackets without words or without a number, one inside another, or a weight beyond 100.
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
    """`count` prompts from each of `prompts` to the next, both ends among them: n of them give (n - 1) (count - 1) + 1.

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
