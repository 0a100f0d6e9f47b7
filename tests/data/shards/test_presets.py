"""Every preset on shards as their makers write them, and the captions beside shards."""

import json

import pytest

from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.shards import captions as captions_module
from glide_jax.data.shards.captions import parse_metadata
from glide_jax.data.source import BadSample
from glide_jax.data.sources.webdataset import WebDataset
from glide_jax.errors import GlideError


def img2dataset(key, **changes):
    """The `.json` member that img2dataset writes beside an image."""
    return {
        "key": key,
        "status": "success",
        "error_message": None,
        "url": f"https://example.org/{key}.jpg",
        "caption": f"caption {key}",
        "width": 64,
        "height": 64,
        "original_width": 600,
        "original_height": 400,
        "exif": "{}",
        "similarity": 0.33,
        "NSFW": "UNLIKELY",
        "LICENSE": "?",
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    """Writes samples, by key, to shards of three with the webdataset package, and returns the folder."""
    import webdataset  # not above: it imports torch

    def write(samples):
        (tmp_path / "shards").mkdir()
        with webdataset.ShardWriter(str(tmp_path / "shards" / "%05d.tar"), maxcount=3, verbose=0) as writer:
            for key, members in samples.items():
                writer.write({"__key__": key, **members})
        return str(tmp_path / "shards")

    return write


def captions(path, **options):
    source = WebDataset(DataConfig(path=path, **options))
    found = []
    for i in range(len(source)):
        try:
            found.append(source[i].captions[0])
        except BadSample as bad:
            found.append(f"({bad})")
    return found, dict(source.counts)


def test_laion_with_the_quirks_of_img2dataset(write):
    def sample(key, txt=None, **changes):
        return {"jpg": b"jpeg", "txt": f"caption {key}" if txt is None else txt, "json": img2dataset(key, **changes)}

    samples = {
        "000000000": sample("000000000"),
        "000000001": sample("000000001", original_width=255),
        "000000002": sample("000000002", original_width=900, original_height=300),
        "000000003": sample("000000003", NSFW="NSFW"),
        "000000004": sample("000000004", NSFW="LIKELY"),
        "000000005": sample("000000005", NSFW="UNSURE"),
        "000000006": sample("000000006", NSFW=None, similarity=None),
        "000000007": sample("000000007", txt=""),
        "000000008": {"jpg": b"jpeg", "txt": "no json"},
        "000000009": {
            "txt": "not downloaded",
            "json": img2dataset("000000009", status="failed_to_download", error_message="HTTP Error 404"),
        },
        "000000010": {"jpg": b"jpeg", "json": img2dataset("000000010", caption=None)},
        "000000011": {"jpg": b"jpeg", "txt": "cut", "json": b'{"key": "0000'},
    }
    found, counts = captions(write(samples), preset="laion")
    assert found == ["caption 000000000", "caption 000000005", "caption 000000006"]
    assert counts == {
        "too small": 1,
        "aspect ratio": 1,
        "nsfw": 2,
        "empty caption": 1,
        "corrupt image": 1,  # without JSON the file itself is measured
        "missing image": 1,
        "missing caption": 1,
        "unreadable metadata": 1,
    }


def test_own_bounds_come_before_those_of_laion(write):
    small = {"jpg": b"jpeg", "txt": "small", "json": img2dataset("0", original_width=100, original_height=100)}
    path = write({"0": small})
    with pytest.raises(GlideError, match="too small: 1"):
        captions(path, preset="laion")
    assert captions(path, preset="laion", filters=FilterConfig(min_size=64))[0] == ["small"]


def test_alamy_keeps_english(write):
    samples = {key: {"jpg": b"jpeg", "txt": key, "json": {"lc": key, "caption": "a"}} for key in ("en", "de")}
    samples["none"] = {"jpg": b"jpeg", "txt": "none", "json": {"caption": "a"}}
    assert captions(write(samples), preset="alamy") == (["en"], {"language": 1, "missing metadata": 1})


@pytest.mark.parametrize("preset", ["simple", "datacomp-real"])
@pytest.mark.parametrize("ending", ["jpg", "JPEG", "png", "webp", "avif", "tif"])
def test_an_image_of_any_kind_and_its_text(write, preset, ending):
    assert captions(write({"0": {ending: b"0", "txt": "a dog"}}), preset=preset) == (["a dog"], {})


def test_synthetic_prefers_the_short_caption(write):
    records = {
        "0": {"short_caption": "short", "long_caption": "long"},
        "1": {"long_caption": " only long "},
        "2": {"short_caption": "", "long_caption": "long instead"},
        "3": {"short_caption": None},
    }
    samples = {key: {"jpg": b"jpeg", "txt": "alt text", "json": record} for key, record in records.items()}
    samples["4"] = {"jpg": b"jpeg", "txt": "alt text"}
    assert captions(write(samples), preset="synthetic") == (
        ["short", "only long", "long instead"],
        {"empty caption": 1, "missing caption": 1},
    )


@pytest.fixture
def lines(tmp_path):
    def lines(records):
        path = tmp_path / "captions.jsonl"
        path.write_text(
            "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)
        )
        return str(path)

    return lines


def test_datacomp_synthetic_reads_captions_by_key(write, lines):
    samples = {key: {"jpg": b"jpeg", "txt": "alt text"} for key in ("a/000", "001", "002", "003", "004")}
    records = [
        {"key": "001", "caption": "ünïcode one"},
        "not json",
        {"caption": "keyless"},
        {"key": "000", "caption": "zero"},
        {"key": "003", "caption": ""},
        {"key": "001", "caption": "a second one"},
        {"key": "004", "caption": "four"},
    ]
    assert captions(write(samples), preset="datacomp-synthetic", captions_jsonl=lines(records)) == (
        ["zero", "ünïcode one", "four"],
        {"missing caption": 1, "empty caption": 1},
    )


def clip_record(key, generated, original):
    return {
        "key": key,
        "caption": f"generated {key}",
        "generated_caption_clip_score": generated,
        "original_caption": f"original {key}",
        "original_caption_clip_score": original,
    }


def test_datacomp_clip_takes_the_caption_of_the_higher_score(write, lines):
    samples = {str(i): {"jpg": b"jpeg", "txt": "alt text"} for i in range(5)}
    scores = [(0.3, 0.2), (0.2, 0.3), (0.25, 0.25), (0.1, 0.15), (None, 0.22)]
    records = lines([clip_record(str(i), *pair) for i, pair in enumerate(scores)])
    path = write(samples)
    options = {"preset": "datacomp-clip", "captions_jsonl": records}
    everything = ["generated 0", "original 1", "generated 2", "original 3", "original 4"]
    assert captions(path, **options) == (everything, {})
    above = FilterConfig(min_similarity=0.2)
    assert captions(path, **options, filters=above) == ([*everything[:3], everything[4]], {"similarity": 1})


def test_a_changed_jsonl_is_read_again(write, lines):
    path = write({"0": {"jpg": b"jpeg"}})
    options = {"path": path, "preset": "datacomp-synthetic"}
    assert captions(captions_jsonl=lines([{"key": "0", "caption": "before"}]), **options)[0] == ["before"]
    assert captions(captions_jsonl=lines([{"key": "0", "caption": "and after"}]), **options)[0] == ["and after"]


def test_a_preset_without_its_jsonl_is_refused(write, tmp_path, lines):
    path = write({"0": {"jpg": b"jpeg"}})
    for jsonl, message in (("", "none is given"), (str(tmp_path / "no.jsonl"), "no.jsonl is given")):
        with pytest.raises(GlideError, match=f"{message}; set --config.data.captions_jsonl=FILE"):
            captions(path, preset="datacomp-clip", captions_jsonl=jsonl)
    with pytest.raises(GlideError, match=r"no line of data\.captions_jsonl"):
        captions(path, preset="datacomp-clip", captions_jsonl=lines(["{}"]))


def test_a_json_field_may_be_named_by_hand(write):
    samples = {"0": {"png": b"0", "txt": "alt", "json": {"title": "from json"}}, "1": {"png": b"1", "txt": "alt"}}
    assert captions(write(samples), caption_key="json:title;txt")[0] == ["from json", "alt"]


def test_json_is_parsed_once_a_sample(write, monkeypatch):
    parsed = []
    monkeypatch.setattr(captions_module, "parse_metadata", lambda data: parsed.append(data) or parse_metadata(data))
    fields = {"original_width": 512, "original_height": 512, "similarity": 0.3, "lc": "en", "NSFW": "UNLIKELY"}
    captioned = [{"short_caption": "", "long_caption": f"long {i}", **fields} for i in range(4)]
    filters = FilterConfig(
        min_size=9, max_aspect=2.0, min_similarity=0.1, languages=("en",), nsfw_labels=("NSFW",), skip_words=("logo",)
    )
    path = write({str(i): {"jpg": b"jpeg", "json": record} for i, record in enumerate(captioned)})
    source = WebDataset(DataConfig(path=path, preset="synthetic", filters=filters))
    assert (len(source), len(parsed)) == (4, 4)
