"""The kernels in the text of a program that XLA compiled for an NVIDIA GPU or a TPU."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_ITEMSIZE = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
# Of a TPU's layouts, those with S(1) are in the chip's fast memory.
_SHAPE = re.compile(r"\b(" + "|".join(_ITEMSIZE) + r")\[([\d,]*)\](?!\{[^}]*S\(1\))")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*?)\)(?:, |$)")
# Neither kernels nor memory traffic.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "conditional"}


@dataclass
class Kernel:
    """One operation of a compiled program that is a kernel, or several, on the device.

    `bytes` of the device's large memory are read and written, by shapes; `cycles` are the estimate of a TPU's compiler.
    """

    kind: str
    text: str
    bytes: int
    cycles: int


def kernels(text: str) -> Iterator[Kernel]:
    """The kernels of a compiled program's text; those of a loop's body once."""
    fused = set(re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", text))
    computations = {
        name[1]: computation
        for computation in re.split(r"\n(?=%|ENTRY)", text)
        if (name := re.match(r"(?:ENTRY )?%([\w.\-]+)", computation))
    }
    for name, computation in computations.items():
        if name in fused:
            continue
        sizes: dict[str, int] = {}
        for line in computation.splitlines():
            found = _INSTRUCTION.match(line)
            if found is None:
                continue
            result, shape, operation, operands = found.groups()
            sizes[result] = _bytes(shape)
            if operation not in _FREE and not operation.endswith("-done"):
                called = re.search(r"calls=%([\w.\-]+)", line)
                body = computations[called[1]] if called else ""
                read = {
                    operand: _bytes_read(body, number, sizes.get(operand, 0))
                    for number, operand in enumerate(re.findall(r"%([\w.\-]+)", operands))
                }
                cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
                total = sizes[result] + sum(read.values())
                yield Kernel(_kind(operation, line, body or line), line.strip(), total, int(cycles[1]) if cycles else 0)


def _bytes(shape: str) -> int:
    return sum(
        _ITEMSIZE[kind] * math.prod(map(int, filter(None, sides.split(",")))) for kind, sides in _SHAPE.findall(shape)
    )


def _bytes_read(body: str, number: int, size: int) -> int:
    """Of a fusion's parameter of that size: all of it, or the slices that the fusion takes of it."""
    names = re.findall(rf"%(\S+) = .* parameter\({number}\)", body)
    taken = 0
    while names:
        use = rf"%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)%{re.escape(names.pop())}[,)]"
        for result, shape, operation, before in re.findall(use, body):
            if operation in ("bitcast", "convert"):
                names.append(result)
            elif operation in ("slice", "dynamic-slice") and not before:
                taken += _bytes(shape)
            else:
                return size
    return min(taken, size) if taken else size


def _kind(operation: str, line: str, body: str) -> str:
    # A TPU's matrix products are convolutions too.
    if product := re.search(r" convolution\(.*", body):
        return "convolution" if "conv_general_dilated" in product[0] else "matrix product"
    if operation == "custom-call":
        target = re.search(r'custom_call_target="([^"]+)"', line)
        name = target[1] if target else ""
        parts = {"conv": "convolution", "fmha": "attention", "cublas": "matrix product", "callback": "host callback"}
        return next((kind for part, kind in parts.items() if part in name), name)
    if operation == "fusion":
        if re.search(r'"kind":"__triton\w*gemm', line) or " dot(" in body:
            return "matrix product"
        kind = re.search(r"%(?:input|loop|wrapped)?_?([\w-]*?)(?:_fusion)?[.\d]* =", line)
        words = set(re.split(r"[_-]", kind[1])) if kind else set()
        return next(
            (k for k in ("scatter", "sort", "reduce", "transpose", "concatenate") if k in words), "other fusion"
        )
    return operation


def report(text: str, half: bool) -> str:
    """Kernels and gigabytes by kind, for a TPU also estimated cycles, and what should not be there."""
    counts: Counter[str] = Counter()
    traffic: Counter[str] = Counter()
    cycles: Counter[str] = Counter()
    unwanted: Counter[str] = Counter()
    for kernel in kernels(text):
        counts[kernel.kind] += 1
        traffic[kernel.kind] += kernel.bytes
        cycles[kernel.kind] += kernel.cycles
        if kernel.kind in ("host callback", "sort"):
            unwanted[kernel.kind] += 1
        if kernel.kind in ("transpose", "copy") and kernel.bytes > 2**24:
            unwanted[f"{kernel.kind} of more than 16 MiB"] += 1
        if kernel.cycles or kernel.kind != "convolution":
            continue
        if kernel.text.split(" = ")[1].split(" ")[1].startswith("convolution("):
            unwanted["convolution without cuDNN"] += 1
        elif half and " = (f32[" in kernel.text:
            unwanted["float32 convolution"] += 1
    total = cycles.total()
    lines = [
        f"  {counts.total()} kernels, {traffic.total() / 1e9:.2f} GB"
        + f", {total / 1e6:.1f} million cycles" * (total > 0)
    ]
    for kind, count in counts.most_common():
        share = f" {cycles[kind] / total:6.1%}" if total else ""
        lines.append(f"    {count:5d} {traffic[kind] / 1e9:8.2f} GB{share}  {kind}")
    return "\n".join([*lines, "  unwanted: " + (", ".join(f"{n} {what}" for what, n in unwanted.items()) or "nothing")])
