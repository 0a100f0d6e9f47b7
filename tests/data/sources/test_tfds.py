import io
import itertools
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from glide_jax.data.buckets import measured
from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.loader import open_data
from glide_jax.data.source import BadSample
from glide_jax.data.sources.tfds import Tfds
from glide_jax.errors import GlideError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

SIZE = 23


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a small data set, really prepared as array_record: image i has the colour (i, 255 - i, 7)."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="the tfds extra is not installed")

    # Not registered, for the fixture may be needed twice: another worker's tests come in between.
    class Dogs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["red_dog", "cat"]),
                "caption": tfds.features.Text(),
                "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(SIZE), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for i in range(count):
                side = 8 if i == 3 else 16
                file = io.BytesIO()  # an array would be encoded by TensorFlow
                Image.new("RGB", (side, side), (i, 255 - i, 7)).save(file, "PNG")
                file.seek(0)
                texts = [{"text": f"first {i}"}, {"text": f"second {i}"}]
                caption = "" if i == 4 else f"number {i}"
                yield i, {"image": file, "label": i % 2, "caption": caption, "captions": texts}

    builder = Dogs(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def open_tfds(path, **options):
    return Tfds(DataConfig(source="tfds", path=path, **options))


def samples(source):
    found = []
    for i in range(len(source)):
        try:
            found.append(source[i])
        except BadSample as bad:
            found.append(str(bad))
    return found


def test_images_come_as_files_with_their_captions(prepared):
    found = samples(open_tfds(prepared))
    assert found.count("empty caption") == 1
    whole = [sample for sample in found if isinstance(sample, tuple)]
    assert sorted(sample.captions for sample in whole) == sorted((f"number {i}",) for i in range(SIZE) if i != 4)
    assert all(sample.image.startswith(b"\x89PNG") for sample in whole)


def test_sizes_are_the_images_own(prepared, cache_folder, monkeypatch):
    monkeypatch.setattr("glide_jax.data.sources.tfds.PART", 10)
    found, left_out = measured(open_tfds(prepared))
    sizes = Counter(map(tuple, found.tolist()))
    assert sizes == {(16, 16): SIZE - 2, (8, 8): 1, (0, 0): 1}
    assert left_out == {"empty caption": 1}
    assert len([*cache_folder.rglob("sizes/*")]) == 3


def test_splits_are_those_of_tfds(prepared):
    assert len(open_tfds(f"{prepared}@test")) == 5
    assert len(open_tfds(f"{prepared}@train[:10]")) == 10


def test_lists_of_captions_and_labels_through_templates(prepared):
    several = samples(open_tfds(prepared, caption_key="captions/text"))
    assert sorted(sample.captions for sample in several) == sorted((f"first {i}", f"second {i}") for i in range(SIZE))
    templates = ("a photo of a {label}", "an image of one {label}")
    labelled = samples(open_tfds(prepared, caption_key="label", label_templates=templates))
    assert {sample.captions for sample in labelled} == {
        tuple(template.format(label=label) for template in templates) for label in ("red dog", "cat")
    }


def test_filters_read_every_record_once(prepared, cache_folder):
    filters = FilterConfig(min_size=16, skip_words=("number 1",))
    for _ in range(2):
        source = open_tfds(prepared, filters=filters)
        assert {sample.captions for sample in samples(source)} == {
            (f"number {i}",) for i in range(SIZE) if i not in (1, 3, 4)
        }
        assert source.counts == {"too small": 1, "words": 1, "empty caption": 1}
        assert len(list(cache_folder.rglob("*.npz"))) == 1


def test_batches_are_those_of_the_one_pipeline(prepared):
    config = DataConfig(source="tfds", path=prepared, crop="random", workers=3, uncond_p=0.0)

    def batches(position=0):
        options = {"image_size": 8, "text_ctx": 6, "batch_size": 10, "seed": 2}
        with open_data(config, position=position, **options) as stream:
            return list(itertools.islice(stream, 8)), stream.report()

    whole, report = batches()
    for batch in whole:
        numbers = [int(caption.removeprefix("number ")) for caption in batch.captions]
        np.testing.assert_array_equal(batch.arrays["image"][:, 3, 3], [(i, 255 - i, 7) for i in numbers])
    assert report["empty caption"] >= 2
    resumed, _ = batches(position=40)
    for a, b in zip(whole[4:], resumed[:4], strict=True):
        assert a.captions == b.captions


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("PREPARED@nowhere", {}, "cannot read dogs/1.0.0@nowhere: Unknown split"),
        ("PREPARED", {"image_key": "photo"}, "no feature 'photo'; set data.image_key to one of "),
        ("PREPARED", {"caption_key": "title"}, "no feature title; set data.caption_key to one of "),
        ("no_such_set@train", {}, "no TFDS data set 'no_such_set'"),
        ("", {}, "add --config.data.path=mnist@train"),
        ("PREPARED", {"filters": FilterConfig(min_size=999)}, r"no usable sample .*\(too small: 23"),
    ],
)
def test_what_cannot_be_opened_gets_one_clear_line(prepared, path, options, message):
    with pytest.raises(GlideError, match=message) as caught:
        open_tfds(path.replace("PREPARED", prepared), **options)
    assert "\n" not in str(caught.value)


def test_tensorflow_is_not_imported(prepared, monkeypatch):
    assert "tensorflow" not in sys.modules
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # to import it would be an error
    assert open_tfds(prepared)[0].image
