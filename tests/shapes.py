"""The checker behind jaxtyping's import hook: beartype, applied to annotations of arrays.

All others are mypy's business: tests pass wrong values on purpose, to see the package's own errors.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
# By signature: the hook hands over an empty function of it, for local functions one each time that they are defined.
_checked: dict[tuple[Any, ...], Callable[..., Any]] = {}


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check shape and dtype of its array arguments and results at every call."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _mentions_array(hint)}
    if not function.__annotations__:
        return function
    # Equal hints of arrays are different objects with one name.
    code, hints = function.__code__, str(function.__annotations__)
    signature = (function.__module__, function.__qualname__, code.co_code, code.co_varnames, hints)
    if signature not in _checked:
        _checked[signature] = _check(function)
    return _checked[signature]


def _mentions_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_mentions_array(part) for part in get_args(hint))
