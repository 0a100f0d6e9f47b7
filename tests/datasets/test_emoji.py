"""The bundled emoji images as its readers meet it: shards, captions, images, split and index."""

import hashlib
import importlib
import io
import json
import re
import sys
import warnings
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.programs import ROOT

EMOJI = ROOT / "datasets" / "emoji"
SPLITS = ("train", "val")
GROUPS = ("animals", "food", "travel", "objects", "activities")
SIDES = {"3d": 256, "flat": 64, "drawing": 64}
WORDS = {"3d": "a 3d render of", "flat": "a flat icon of", "drawing": "a shaded drawing of"}
SHARDS = {f"{split}-{group}-{style}.tar" for split, group, style in product(SPLITS, GROUPS, SIDES)}


def read(pattern: str) -> list[dict[str, Any]]:
    """Returns the raw samples of the shards that a brace pattern names, in their order."""
    import webdataset  # not above: it imports torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves closing its files to Python
        return list(webdataset.WebDataset(str(EMOJI / pattern), shardshuffle=False))


@pytest.fixture(scope="module")
def shards() -> dict[str, list[dict[str, Any]]]:
    return {name: read(name) for name in sorted(SHARDS)}


@pytest.fixture(scope="module")
def samples(shards) -> list[dict[str, Any]]:
    return [sample for members in shards.values() for sample in members]


@pytest.fixture(scope="module")
def records(samples) -> list[dict[str, Any]]:
    return [json.loads(sample["json"]) | {"caption": sample["txt"].decode("ascii")} for sample in samples]


@pytest.fixture(scope="module")
def index() -> dict[str, Any]:
    return json.loads((EMOJI / "index.json").read_text())


@pytest.fixture
def script(monkeypatch):
    """The import function, finding the build's modules as running the script would."""
    modules = ("build", "colours", "packages", "things")
    monkeypatch.syspath_prepend(str(EMOJI))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in modules:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in modules:
        sys.modules.pop(name, None)


def test_index_describes_the_shards_byte_for_byte(shards, index):
    assert {path.name for path in EMOJI.glob("*.tar")} == SHARDS
    for entry in index["shards"]:
        data = (EMOJI / entry["file"]).read_bytes()
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["samples"] == len(shards[entry["file"]])
    assert {entry["file"] for entry in index["shards"]} == SHARDS


def test_readme_gives_the_counts_and_sources(records, index):
    readme = (EMOJI / "README.md").read_text()
    count = Counter((record["group"], record["style"], record["split"]) for record in records)
    for group, style in product(GROUPS, SIDES):
        assert f"| {group} | {count[group, style, 'train']} | {count[group, style, 'val']} |" in readme
    assert f"{index['things']} things" in readme
    assert f"{index['samples']} captioned images" in readme
    assert index["samples"] == len(records)
    assert index["things"] == len({record["thing"] for record in records})
    for source in index["sources"]:
        name, _, version = source["package"].rpartition("@")
        assert f"| `{name}` {version} |" in readme
        assert f"| {source['licence']} | `{source['sha256']}` |" in readme
    for licence in (EMOJI / "LICENSES").iterdir():
        assert f"`{licence.name}`" in readme


def test_everything_stays_small():
    sizes = [path.stat().st_size for path in EMOJI.rglob("*") if path.is_file()]
    assert sum(sizes) < 16e6
    assert max(sizes) < 4 * 2**20


def test_every_sample_is_a_picture_a_caption_and_a_record(shards):
    for shard, members in shards.items():
        split, group, style = shard.removesuffix(".tar").split("-")
        for sample in members:
            fields = {name for name in sample if not name.startswith("_")}
            record = json.loads(sample["json"])
            assert fields == {"webp", "txt", "json"}, sample["__key__"]
            assert (record["split"], record["group"], record["style"]) == (split, group, style)
            assert sample["__key__"].endswith(f"-{style}")


def test_a_brace_pattern_chooses_a_part(shards):
    keys = [sample["__key__"] for sample in read("{train,val}-{food,travel}-3d.tar")]
    parts = [shards[f"{split}-{group}-3d.tar"] for split in SPLITS for group in ("food", "travel")]
    assert keys == [sample["__key__"] for members in parts for sample in members]


def test_keys_are_unique(samples):
    assert max(Counter(sample["__key__"] for sample in samples).values()) == 1


def test_pictures_are_rgb_squares_on_white(samples):
    white_corners = {style: [] for style in SIDES}
    for sample in samples:
        record = json.loads(sample["json"])
        with Image.open(io.BytesIO(sample["webp"])) as picture:
            assert picture.mode == "RGB"
            assert picture.size == (record["width"], record["height"]) == (SIDES[record["style"]],) * 2
            corners = np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1]]
        white_corners[record["style"]].append((corners == 255).all())
    assert all(white_corners["3d"])
    assert all(white_corners["drawing"])
    assert np.mean(white_corners["flat"]) > 0.85  # the rest fill their square to the edge


def test_captions_are_unique_and_grammatical(records):
    captions = [record["caption"].lower() for record in records]
    assert len(set(captions)) == len(captions)
    sounds_like_a_consonant = r"(uni|one-|eu)"
    sounds_like_a_vowel = r"(hour|x-ray)"
    for record in records:
        words = WORDS[record["style"]]
        match = re.fullmatch(
            rf"{words} (?:(a|an|the) )?([A-Za-z][A-Za-z0-9'-]*(?: [A-Za-z0-9'-]+)*)", record["caption"]
        )
        assert match, record["caption"]
        article, noun = match.groups()
        assert noun == record["thing"]
        vowel = re.match(r"[aeiou]", noun, re.I) and not re.match(sounds_like_a_consonant, noun, re.I)
        vowel = bool(vowel or re.match(sounds_like_a_vowel, noun, re.I))
        assert article not in ("a", "an") or (article == "an") == vowel, record["caption"]
        assert not re.search(r"\b(a|an|the) (a|an|the)\b", record["caption"])


def test_a_missing_article_means_a_plural_a_mass_or_a_name(records):
    bare = {r["thing"] for r in records if r["caption"] == f"{WORDS[r['style']]} {r['thing']}"}
    singular = {noun for noun in bare if not noun.endswith("s") and noun[0].islower()}
    assert singular == {
        "bacon", "brick", "broccoli", "butter", "coral", "curry with rice", "falafel", "fire", "fog",
        "garlic", "meat on the bone", "popcorn", "shaved ice", "spaghetti", "sushi",
    }  # fmt: skip


def test_every_thing_comes_in_every_style_with_the_same_words(records):
    drawn = {}
    for record in records:
        noun = record["caption"].removeprefix(WORDS[record["style"]])
        drawn.setdefault((record["codepoints"], noun), []).append(record["style"])
    assert all(sorted(styles) == sorted(SIDES) for styles in drawn.values())


def test_held_out_pairs_are_never_trained_on_but_their_parts_are(records):
    pairs = {split: {(r["thing"], r["style"]) for r in records if r["split"] == split} for split in SPLITS}
    assert not pairs["train"] & pairs["val"]
    assert 0.05 < len(pairs["val"]) / len(records) < 0.08
    trained_styles = Counter(thing for thing, _ in pairs["train"])
    held_things = Counter(thing for thing, _ in pairs["val"])
    assert max(held_things.values()) == 1
    assert all(trained_styles[thing] == 2 for thing in held_things)
    for group in GROUPS:
        shares = [
            np.mean([r["split"] == "val" for r in records if (r["group"], r["style"]) == (group, style)])
            for style in SIDES
        ]
        assert min(shares) == max(shares)
        assert 0.05 < min(shares) < 0.08


def test_the_split_follows_from_the_code_points(records, script):
    members = {g: {r["codepoints"] for r in records if r["group"] == g} for g in GROUPS}
    held = script("things").hold_out(members, list(SIDES))
    assert held == {r["codepoints"]: r["style"] for r in records if r["split"] == "val"}


def test_the_other_captions_name_the_thing_alone(samples, script):
    build = script("build")
    lines = (EMOJI / "captions.jsonl").read_bytes()
    found = {line["key"]: line["captions"] for line in map(json.loads, lines.splitlines())}
    assert set(found) == {sample["__key__"] for sample in samples}
    for sample in samples:
        first, second = found[sample["__key__"]]
        style = json.loads(sample["json"])["style"]
        assert (first, f"{WORDS[style]} {second}") == (sample["txt"].decode(), first)
    style = build.STYLES[0]
    ours = [s for s in samples if json.loads(s["json"])["style"] == style.key and s["__key__"] < "b"]
    made = build.caption_lines(ours[::-1], style).splitlines()
    assert made == sorted(made)
    assert set(made) <= set(lines.splitlines())


@pytest.mark.parametrize("shard", ["val-animals-3d.tar", "train-activities-flat.tar"])
def test_packing_the_samples_again_gives_the_same_bytes(shards, script, shard):
    members = [{k: s[k] for k in ("__key__", "webp", "txt", "json")} for s in reversed(shards[shard])]
    assert script("build").pack_shard(members) == (EMOJI / shard).read_bytes()


def test_an_odd_picture_is_centred_on_white_uncropped(script):
    picture = Image.new("RGBA", (32, 64), (255, 0, 0, 255))
    out = np.asarray(script("build").on_white(picture, 64))
    assert out.shape == (64, 64, 3)
    assert (out[:, 16:48] == (255, 0, 0)).all()
    assert (out[:, :16] == 255).all()
    assert (out[:, 48:] == 255).all()


def test_a_half_transparent_picture_lightens(script):
    out = script("build").on_white(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), 64)
    assert out.getpixel((5, 5)) == (127, 127, 127)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((20, 20, 20), "black"), ((250, 250, 250), "white"), ((136, 153, 166), "grey"),
        ((221, 46, 68), "red"), ((244, 144, 12), "orange"), ((255, 204, 77), "yellow"),
        ((119, 178, 85), "green"), ((85, 172, 238), "blue"), ((170, 142, 214), "purple"),
        ((244, 171, 186), "pink"), ((193, 105, 79), "brown"),
    ],
)  # fmt: skip
def test_main_colour_names_what_covers_most(script, rgb, name):
    picture = Image.new("RGBA", (64, 64), (*rgb, 255))
    picture.paste((0, 255, 0, 0), (0, 0, 64, 40))  # transparent: not counted
    picture.paste((221, 46, 68, 255) if name == "green" else (119, 178, 85, 255), (0, 40, 64, 46))
    assert script("colours").main_colour(picture) == (name, 0.75)


def test_colour_words_agree_with_things_named_by_their_colour(records):
    named = [(re.match(r"(red|green|blue|orange|black) ", r["thing"]), r) for r in records]
    right = [match[1] == record["colour"] for match, record in named if match and record["colour_share"] > 0.4]
    assert len(right) > 20
    assert np.mean(right) > 0.8  # a "black cat" may be drawn purple


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("turtle", "a turtle"), ("axe", "an axe"), ("hourglass", "an hourglass"), ("house", "a house"),
        ("unicorn", "a unicorn"), ("umbrella", "an umbrella"), ("one-piece swimsuit", "a one-piece swimsuit"),
        ("onion", "an onion"), ("American football", "an American football"), ("cherries", "cherries"),
    ],
)  # fmt: skip
def test_phrases_take_the_article_of_their_sound(script, label, phrase):
    wording = {"without_article": ["cherries"], "phrases": {}}
    assert script("things").phrase_of(label, wording) == phrase


def test_two_things_of_one_name_are_refused(script):
    things = script("things")
    bat = [things.Thing(code, "bat", "a bat", "animals", "animal-mammal", ()) for code in ("1f987", "1f3cf")]
    with pytest.raises(SystemExit, match="several things are called bat"):
        things.check_wording(bat, {"without_article": [], "phrases": {}, "leave_out": {}}, {"bat"})


def test_wording_for_an_unknown_label_is_refused(script):
    wording = {"without_article": [], "phrases": {"trutle": "a turtle"}, "leave_out": {}}
    with pytest.raises(SystemExit, match="speaks of trutle"):
        script("things").check_wording([], wording, {"turtle"})


def test_a_tarball_with_other_bytes_is_refused(script, tmp_path):
    packages = script("packages")
    (tmp_path / packages.LABELS.tarball).write_bytes(b"not the package")
    with pytest.raises(SystemExit, match=rf"sha256 [0-9a-f]{{64}}, not {packages.LABELS.sha256}"):
        packages.fetch(packages.LABELS, tmp_path)
