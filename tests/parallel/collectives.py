"""What a compiled program moves between devices, read from its text."""

import math
import re
from collections import Counter

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# An asynchronous pair counts at its end, where the result alone is named.
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-done)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


def collective_bytes(hlo: str) -> Counter[str]:
    """Bytes that the collectives of each kind give to one device, each operation counted once.

    Args:
        hlo: `compiled.as_text()`.
    """
    total: Counter[str] = Counter()
    for results, kind in _OPERATION.findall(hlo):
        total[kind] += sum(_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(results))
    return total


def _bytes(dtype: str, dims: str) -> int:
    bits = _BITS.search(dtype)
    return math.prod(int(n) for n in dims.split(",") if n) * (int(bits[0]) // 8 if bits else 1)
