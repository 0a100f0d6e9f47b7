import io
import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(folder))
    return folder


@pytest.fixture
def encode():
    """Encodes an array or image as the bytes of a file."""

    def encode(image, file_format="PNG", **options):
        file = io.BytesIO()
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(file, format=file_format, **options)
        return file.getvalue()

    return encode


@pytest.fixture
def write_shard(tmp_path):
    """Writes a tar with the webdataset package; samples are dicts of member ending to bytes, str or dict."""
    import webdataset  # not above: it imports torch

    def write_shard(name, samples):
        path = tmp_path / name
        with webdataset.TarWriter(str(path)) as writer:
            for i, sample in enumerate(samples):
                raw = {ending: _raw(value) for ending, value in sample.items()}
                writer.write({"__key__": f"{path.stem}-{i:05d}", **raw})
        return path

    return write_shard


def _raw(value):
    if isinstance(value, dict):
        return json.dumps(value).encode()
    return value.encode() if isinstance(value, str) else value


@pytest.fixture
def numbered(encode):
    """Sample i: a 16-pixel image of the one colour (i, 255 - i, 7), captioned "number i"."""

    def numbered(i, **more):
        pixels = np.broadcast_to(np.array([i, 255 - i, 7], np.uint8), (16, 16, 3)).copy()
        return {"png": encode(pixels), "txt": f"number {i}", **more}

    return numbered


@pytest.fixture
def numbered_shards(write_shard, numbered, tmp_path):
    """A pattern for three shards that hold the samples 0 to 36."""
    for shard, numbers in enumerate((range(10), range(10, 25), range(25, 37))):
        write_shard(f"set-{shard:03d}.tar", [numbered(i) for i in numbers])
    return str(tmp_path / "set-{000..002}.tar")
