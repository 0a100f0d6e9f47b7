"""The things of the data set: which emoji, in what words, and which pairs are held out for validation."""

import hashlib
import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packages import read_members

GROUPS = {  # emojibase's keys -> ours
    "animals-nature": "animals",
    "food-drink": "food",
    "travel-places": "travel",
    "objects": "objects",
    "activities": "activities",
}
HELD_OUT_SHARE = 0.06


@dataclass(frozen=True)
class Thing:
    """One emoji, which becomes one image in each style."""

    codepoints: str  # hexadecimal, joined by "-", without FE0F
    label: str  # CLDR short name
    phrase: str  # the words of the captions, article included
    group: str
    subgroup: str
    tags: tuple[str, ...]

    @property
    def name(self) -> str:
        return re.sub(r"^(a|an|the) ", "", self.phrase)


def normalise(codepoints: str) -> str:
    """Spells a code point sequence as all four packages can share it: "00A9-FE0F" -> "a9"."""
    return "-".join(p.lstrip("0") for p in codepoints.lower().split("-") if p != "fe0f")


def read_things(tarball: Path, wording: dict[str, Any], drawn: Collection[str]) -> list[Thing]:
    """Returns the things among `drawn` (code points that every style has), by group and code points."""
    paths = ("package/en/data.json", "package/en/messages.json")
    files = read_members(tarball, paths.__contains__)
    records, messages = (json.loads(files[path]) for path in paths)
    groups = {row["order"]: GROUPS.get(row["key"]) for row in messages["groups"]}
    subgroups = {row["order"]: row["key"] for row in messages["subgroups"]}
    things = [
        Thing(
            codepoints=normalise(record["hexcode"]),
            label=record["label"],
            phrase=phrase_of(record["label"], wording),
            group=group,
            subgroup=subgroups[record["subgroup"]],
            tags=tuple(record["tags"]),
        )
        for record in records
        if (group := groups.get(record.get("group")))
        and normalise(record["hexcode"]) in drawn
        and record["label"] not in wording["leave_out"]
    ]
    check_wording(things, wording, {record["label"] for record in records})
    return sorted(things, key=lambda thing: (thing.group, thing.codepoints))


def phrase_of(label: str, wording: dict[str, Any]) -> str:
    """Returns the words for a CLDR label, article included."""
    if label in wording["without_article"]:
        return label
    return wording["phrases"].get(label) or with_article(label)


def with_article(label: str) -> str:
    """Puts "a" or "an" before a label, by its sound."""
    vowel = re.match(r"[aeiou]|hour", label, re.IGNORECASE)
    sounds_like_a_consonant = re.match(r"uni|one\b|eu|ewe", label, re.IGNORECASE)
    return f"{'an' if vowel and not sounds_like_a_consonant else 'a'} {label}"


def check_wording(things: list[Thing], wording: dict[str, Any], labels: set[str]) -> None:
    """Stops if two things share a name, or if the wording speaks of a label that does not occur."""
    names = [thing.name.lower() for thing in things]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        sys.exit(f"error: several things are called {', '.join(twice)}; tell them apart in wording.toml")
    unused = {*wording["without_article"], *wording["phrases"]} - {thing.label for thing in things}
    unused |= set(wording["leave_out"]) - labels
    if unused:
        sys.exit(f"error: wording.toml speaks of {', '.join(sorted(unused))}, which is the name of no image")


def hold_out(members: Mapping[str, Collection[str]], styles: Sequence[str]) -> dict[str, str]:
    """Chooses the validation pairs: code points -> the one style of that thing kept from training.

    members: group -> the code points of its things. Within a group they are put in the order of their
    sha256; the first 6 % lose the first style, the next 6 % the second, and so on.
    """
    held: dict[str, str] = {}
    for codepoints in members.values():
        ranked = sorted(codepoints, key=lambda c: hashlib.sha256(c.encode()).digest())
        count = round(HELD_OUT_SHARE * len(ranked))
        held |= {c: styles[rank // count] for rank, c in enumerate(ranked[: count * len(styles)])}
    return held
