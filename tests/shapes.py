"""The checker behind jaxtyping's import hook: beartype, applied to annotations of arrays.

All others are mypy's business: tests pass wrong values on purpose, to see the package's own errors.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check shape and dtype of its array arguments and results at every call."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _mentions_array(hint)}
    return _check(function) if function.__annotations__ else function


def _mentions_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_mentions_array(part) for part in get_args(hint))
