"""Reference sets from folders and shards, their cache, names of distances, and the scores of a whole run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.evaluate.cli import main
from glide_jax.evaluate.distances import frechet, kernel
from glide_jax.evaluate.reference import ClipFeatures, check_reference, reference_features
from glide_jax.evaluate.scorer import NoisedClipScorer
from glide_jax.evaluate.scores import distance_names
from glide_jax.sample import LoadedClip
from tests.tiny.models import BASE, save_clip, save_model

SHARD = "datasets/emoji/val-food-3d.tar"


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def extractor(towers):
    return ClipFeatures(NoisedClipScorer(LoadedClip.from_checkpoints(*towers), batch_size=4))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    values = np.random.RandomState(0).randint(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    for i, value in enumerate(values):
        Image.fromarray(value).save(folder / ("below" if i > 3 else "") / f"{i}.png")
    return folder, values


def test_a_folder_gives_the_features_of_its_pictures(pictures, extractor, cache):
    folder, values = pictures
    expected = extractor.image_features(values)
    assert expected.std() == pytest.approx(1, abs=0.5)
    np.testing.assert_allclose(reference_features(str(folder), extractor, 16), expected, atol=1e-5)
    assert len(list(cache.iterdir())) == 1


def test_the_cache_is_used_and_left_when_a_picture_changes(pictures, extractor, cache):
    folder, values = pictures
    reference_features(str(folder), extractor, 16)
    (entry,) = cache.iterdir()
    with np.load(entry) as saved:
        np.savez(entry, probe=saved["probe"], features=saved["features"] + 1)
    again = reference_features(str(folder), extractor, 16)
    np.testing.assert_allclose(again, extractor.image_features(values) + 1, atol=1e-4)
    Image.fromarray(values[0] // 2).save(folder / "0.png")
    changed = np.concatenate([values[:1] // 2, values[1:]])
    np.testing.assert_allclose(
        reference_features(str(folder), extractor, 16), extractor.image_features(changed), atol=1e-4
    )


def test_other_weights_do_not_use_the_cache(pictures, extractor):
    folder, values = pictures
    reference_features(str(folder), extractor, 16)

    class Other:
        name, inception = extractor.name, False

        def image_features(self, images):
            return 2 * extractor.image_features(images)

    np.testing.assert_allclose(
        reference_features(str(folder), Other(), 16), 2 * extractor.image_features(values), atol=1e-4
    )


def test_shards_are_a_reference_too(extractor):
    features = reference_features(SHARD, extractor, 16)
    assert features.shape == (8, 16)
    assert len(np.unique(features[:, 0])) == 8


def test_a_folder_may_hold_other_formats_and_what_macos_leaves_behind(tmp_path, extractor):
    colours = [np.full((16, 16, 3), level, np.uint8) for level in (20, 200)]
    for name, pixels in zip(("0.gif", "1.tif"), colours, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "._0.png").write_bytes(b"\0\5\x16\7")
    found = reference_features(str(tmp_path), extractor, 16)
    np.testing.assert_allclose(found, extractor.image_features(colours), atol=1e-4)


def test_bad_references_are_refused(tmp_path, extractor):
    with pytest.raises(GlideError, match="nowhere"):
        reference_features(str(tmp_path / "nowhere"), extractor, 16)
    (tmp_path / "broken").mkdir()
    with pytest.raises(GlideError, match="broken"):
        check_reference(str(tmp_path / "broken"))
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    with pytest.raises(GlideError, match=r"a\.png"):
        reference_features(str(tmp_path / "broken"), extractor, 16)


def test_only_inception_gives_fid_and_kid(extractor):
    assert distance_names(extractor) == ("Fréchet distance (noised CLIP)", "kernel distance (noised CLIP)")

    class Inception:
        name, inception = "Inception", True

    assert distance_names(Inception()) == ("FID", "KID")


def test_an_evaluation_writes_scores_that_can_be_computed_again(tmp_path, towers, extractor, capsys):
    base = save_model(tmp_path / "base")
    common = ["--checkpoint", base, "--prompts", "a cat|a dog|a hat", "--output_dir", str(tmp_path)]
    common += ["--num_steps", "3", "--batch_size", "4"]
    noised = ["--clip_rerank", "--clip_model", "noised", "--clip_candidates", "3", "--clip_top_k", "2", "--clip"]
    with pytest.raises(GlideError, match="--output_format png"):
        main([*common, *noised, *towers, "--reference", SHARD])
    main([*common, *noised, *towers, "--reference", SHARD, "--output_format", "png"])
    folder = tmp_path / "00000"
    config = json.loads((folder / "metadata.json").read_text())["config"]
    assert config["reference"] == str(Path(SHARD).absolute())  # for a resume from elsewhere
    scores = {entry["name"]: entry for entry in json.loads((folder / "scores.json").read_text())["scores"]}
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("prompt_*/metadata.json"))]
    everything = np.mean([candidate["clip_score"] for record in records for candidate in record["candidates"]])
    kept = np.mean([image["clip_score"] for record in records for image in record["images"]])
    assert scores["CLIP score, all candidates (noised CLIP)"]["value"] == pytest.approx(everything)
    assert scores["CLIP score, kept (noised CLIP)"]["value"] == pytest.approx(kept)
    files = sorted(folder.glob("prompt_*/image_rank_*.png"))
    x = extractor.image_features([np.asarray(Image.open(file)) for file in files])
    y = reference_features(SHARD, extractor, BASE.image_size)
    assert scores["Fréchet distance (noised CLIP)"]["value"] == pytest.approx(frechet(x, y), rel=1e-4)
    estimate = scores["kernel distance (noised CLIP)"]
    assert estimate["value"] == pytest.approx(kernel(x, y), rel=1e-4)
    assert estimate["low"] < estimate["value"] < estimate["high"]
    assert "Fréchet distance (noised CLIP): " in capsys.readouterr().out


def test_a_finished_run_is_scored_without_drawing_again(tmp_path, towers):
    base = save_model(tmp_path / "base")
    main(["--checkpoint", base, "--prompts", "a cat|a dog", "--output_dir", str(tmp_path), "--num_steps", "3",
          "--num_images", "2", "--batch_size", "4", "--output_format", "png"])  # fmt: skip
    folder = tmp_path / "00000"
    assert not (folder / "scores.json").exists()
    drawn = (folder / "prompt_000" / "metadata.json").stat().st_mtime_ns
    main(["--resume", str(folder), "--reference", SHARD, "--clip_model", "noised", "--clip", *towers])
    assert len(json.loads((folder / "scores.json").read_text())["scores"]) == 2
    assert (folder / "prompt_000" / "metadata.json").stat().st_mtime_ns == drawn
