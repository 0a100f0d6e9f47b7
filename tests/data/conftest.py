import io
import json

import numpy as np
import pytest
from PIL import Image

from glide_jax.data.config import DataConfig
from glide_jax.data.loader import open_data
from tests.data.streams import CONTEXT


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


@pytest.fixture
def open_stream(numbered_shards):
    """Opens a stream over the numbered shards; what it opened is closed at the end."""
    opened = []

    def open_stream(batch_size=8, seed=0, position=0, processes=(0, 1), image_size=8, low_res_size=None, **options):
        config = DataConfig(**{"path": numbered_shards, "workers": 2} | options)
        stream = open_data(
            config,
            image_size=image_size,
            low_res_size=low_res_size,
            text_ctx=CONTEXT,
            batch_size=batch_size,
            seed=seed,
            position=position,
            process_index=processes[0],
            process_count=processes[1],
        )
        opened.append(stream)
        return stream

    yield open_stream
    for stream in opened:
        stream.close()
