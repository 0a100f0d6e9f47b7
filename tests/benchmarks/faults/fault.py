"""What a planted fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A mistake that a reviewer might miss.

    Attributes:
        name: what is wrong.
        file: where, from the root of the tree.
        old: source that occurs exactly once in the file.
        new: what to put in its place.
        tests: ids of functions or files, any of which may notice; the quickest.
        hangs: whether running out of time also counts as noticing.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    hangs: bool = False
