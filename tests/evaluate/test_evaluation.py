"""Batch evaluation from the command line: layout, ranking, resuming, and what is refused."""

import io
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.evaluate import Job, NoisedClipScorer, PromptRecord, RunFolder, score
from glide_jax.evaluate.cli import main
from glide_jax.evaluate.run_folder import ranked
from glide_jax.evaluate.sheet import write_sheet
from glide_jax.sample import LoadedClip, Pipeline
from glide_jax.tokenizer import ClipTokenizer
from tests.programs import ROOT, call
from tests.tiny.models import UPSAMPLER, save_clip, save_model

PROMPTS = ["a cat", "a dog", "a <b>hat</b> & 'cup'"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def run(base, output, *arguments, prompts=None):
    given = ["--checkpoint", base, "--prompts", prompts or "|".join(PROMPTS), "--output_dir", output]
    main([str(part) for part in [*given, "--num_steps", 3, "--seed", 7, "--batch_size", 4, *arguments]])


def read(path):
    return json.loads(path.read_text())


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def reranked(base, clip, tmp_path_factory):
    output = tmp_path_factory.mktemp("reranked")
    run(base, output, "--output_format", "png", *RERANK, *clip)
    return output / "00000"


RERANK = ["--clip_rerank", "--clip_model", "noised", "--clip_candidates", 5, "--clip_top_k", 2, "--clip"]


def test_a_plain_run_has_the_layout_of_glide_finetune(base, tmp_path, capsys):
    run(base, tmp_path, "--num_images", 2)
    folder = tmp_path / "00000"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    each = {f"prompt_{i:03d}/{name}" for i in range(3) for name in
            ("image_rank_001.jpg", "image_rank_002.jpg", "prompt.txt", "metadata.json")}  # fmt: skip
    assert names == each | {"metadata.json", "grid.jpg", "index.html"}
    data = read(folder / "metadata.json")
    assert data["prompts"] == PROMPTS
    assert data["prompts_count"] == 3
    assert data["config"]["seed"] == 7
    assert (folder / "prompt_001" / "prompt.txt").read_text() == "a dog\n"
    shown = capsys.readouterr()
    assert "6 images of 3 prompts" in shown.out
    assert re.search(r"sampling, steps of 6 images 18/18  prompt 3/3  .+ (images/s|s an image)  0 s left", shown.err)
    run(base, tmp_path, "--num_images", 2)
    assert (tmp_path / "00001" / "prompt_002" / "image_rank_001.jpg").exists()


def test_records_tell_every_candidate(reranked):
    data = read(reranked / "prompt_001" / "metadata.json")
    assert [image["filename"] for image in data["images"]] == ["image_rank_001.png", "image_rank_002.png"]
    assert [candidate["rank"] for candidate in data["candidates"]] == [1, 2, 3, 4, 5]
    assert sorted(candidate["index"] for candidate in data["candidates"]) == [5, 6, 7, 8, 9]
    assert {candidate["seed"] for candidate in data["candidates"]} == {7}
    scores = [candidate["clip_score"] for candidate in data["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 5
    assert data["sampler"]["sampler"] == "ddim"
    assert data["scorer"] == "noised CLIP"
    assert PromptRecord.from_json(data).to_json() == data


def test_the_best_pictures_are_those_that_the_pipeline_draws_and_the_clip_prefers(reranked, base, clip):
    loaded = LoadedClip.from_checkpoints(*clip)
    images = Pipeline.from_checkpoints(base, batch_size=4)(
        PROMPTS[1], num_images=5, indices=range(5, 10), num_steps=3, seed=7
    ).images
    text = jax.jit(loaded.model.encode_text)(loaded.params, *ClipTokenizer().padded([PROMPTS[1]]))[0]
    pictures = jnp.asarray(images / np.float32(127.5) - 1)
    features = jax.jit(loaded.model.encode_image)(loaded.params, pictures, jnp.zeros(5))
    cosines = np.asarray(features @ text)
    data = read(reranked / "prompt_001" / "metadata.json")
    written = {candidate["index"] - 5: candidate["clip_score"] for candidate in data["candidates"]}
    np.testing.assert_allclose([written[i] for i in range(5)], cosines, atol=1e-4)
    for rank, best in enumerate(np.argsort(-cosines)[:2], start=1):
        drawn = pixels(reranked / "prompt_001" / f"image_rank_{rank:03d}.png").astype(int)
        assert (np.abs(drawn - images[best]) <= 1).mean() > 0.999


def test_an_interrupted_run_goes_on_with_the_same_pictures(reranked, tmp_path, capsys):
    folder = tmp_path / "00000"
    shutil.copytree(reranked, folder)
    kept = (folder / "prompt_000" / "metadata.json").stat().st_mtime_ns
    shutil.rmtree(folder / "prompt_002")
    (folder / "prompt_001" / "metadata.json").unlink()
    (folder / "index.html").unlink()
    main(["--resume", str(folder), "--dry_run"])
    assert "1 of 3 prompts done" in capsys.readouterr().out
    assert not (folder / "prompt_002").exists()
    main(["--resume", str(folder)])
    for path in reranked.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(reranked)).read_bytes() == path.read_bytes(), path
    assert (folder / "prompt_000" / "metadata.json").stat().st_mtime_ns == kept


def test_a_folder_with_every_flag_in_its_record_is_resumed(reranked, tmp_path):
    """As folders were begun before only the flags given were recorded, infinite numbers as strings."""
    folder = tmp_path / "00000"
    shutil.copytree(reranked, folder)
    (folder / "prompt_001" / "metadata.json").unlink()
    written = read(folder / "metadata.json")
    written["config"] |= {
        "sampler": "ddim", "schedule": "", "timestep_respacing": "", "eta": None, "rho": None, "guidance_scale": 3.0,
        "guidance_interval": [0.0, "inf"], "clip_guidance_scale": 0.0, "upsampler_sampler": None, "upsample_temp": None,
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(written))
    main(["--resume", str(folder), "--guidance_scale", "3"])
    for name in ("image_rank_001.png", "image_rank_002.png"):
        assert (folder / "prompt_001" / name).read_bytes() == (reranked / "prompt_001" / name).read_bytes()


def test_a_reference_that_has_moved_is_given_anew(base, tmp_path):
    shutil.copytree(ROOT / "tests/golden/photographs", tmp_path / "before")
    options = ["--clip_model", "noised", "--output_format", "png", "--num_images", 2]
    with pytest.raises(GlideError, match="give --clip TEXT IMAGE"):
        run(base, tmp_path, "--reference", tmp_path / "before", *options)
    run(base, tmp_path, "--output_format", "png", "--num_images", 2, "--negative_prompt", "inf", prompts="inf")
    written = read(tmp_path / "00000" / "metadata.json")
    written["config"]["reference"] = str(tmp_path / "gone" / "{0..3}.tar")
    (tmp_path / "00000" / "metadata.json").write_text(json.dumps(written))
    with pytest.raises(GlideError, match="does not exist"):
        main(["--resume", str(tmp_path / "00000"), "--dry_run"])
    given = ["--reference", str(tmp_path / "before"), "--features", "inception", "--inception_checkpoint", "none.pt"]
    main(["--resume", str(tmp_path / "00000"), *given, "--dry_run"])


def test_resuming_with_other_settings_is_refused(reranked):
    with pytest.raises(GlideError, match="--seed is 7 there"):
        main(["--resume", str(reranked), "--seed", "8"])
    with pytest.raises(GlideError, match=r"--guidance_scale is 3\.0 there"):
        main(["--resume", str(reranked), "--guidance_scale", "2"])
    main(["--resume", str(reranked), "--guidance_scale", "3", "--sampler", "ddim", "--num_steps", "3", "--dry_run"])
    with pytest.raises(GlideError, match="cannot read"):
        main(["--resume", str(reranked / "prompt_000" / "nothing")])
    with pytest.raises(GlideError, match="not that of an evaluation"):
        main(["--resume", str(reranked / "prompt_000")])


def test_a_step_of_a_run_is_evaluated_and_resumed_by_its_number(base, tmp_path):
    shutil.copytree(base, tmp_path / "run" / "checkpoints" / "3")
    named = f"{tmp_path / 'run'}@3"
    run(named, tmp_path, prompts="a cat")
    main(["--resume", str(tmp_path / "00000"), "--checkpoint", named, "--dry_run"])
    with pytest.raises(GlideError, match="--checkpoint is"):
        main(["--resume", str(tmp_path / "00000"), "--checkpoint", str(base)])


def test_a_pipeline_brings_its_settings_and_is_resumed_by_its_name(base, tmp_path):
    shutil.copytree(base, tmp_path / "mine" / "base")
    index = {"base": "base", "settings": {"sampler": "ddpm", "num_steps": 9, "guidance_scale": 2.0}}
    (tmp_path / "mine" / "model_index.json").write_text(json.dumps(index))
    run(tmp_path / "mine", tmp_path, prompts="a cat")
    config = read(tmp_path / "00000" / "metadata.json")["config"]
    assert (config["sampler"], config["num_steps"], config["guidance_scale"]) == ("ddpm", 3, 2.0)
    assert config["checkpoint"] == str(tmp_path / "mine" / "base")
    main(["--resume", str(tmp_path / "00000"), "--checkpoint", str(tmp_path / "mine"), "--dry_run"])
    with pytest.raises(GlideError, match="--checkpoint is"):
        main(["--resume", str(tmp_path / "00000"), "--checkpoint", str(base)])


NO_TEXT = os.fsdecode(b"caf\xe9")  # as Linux allows it in paths, and as a command line in another encoding gives it


def test_folders_that_are_no_text_are_told(reranked, tmp_path, capsys):
    folder = tmp_path / NO_TEXT / "00000"
    shutil.copytree(reranked, folder)
    assert call("evaluate.py", "--resume", folder) == 0
    assert "caf\\udce9/00000, 3 of 3 prompts done" in capsys.readouterr().out


def test_settings_that_are_no_text_are_recorded(tmp_path):
    folder = RunFolder.create(tmp_path / NO_TEXT, ["a cat"], {"reference": NO_TEXT}, "cpu")
    assert RunFolder.open(folder.path).config["reference"] == NO_TEXT
    for suffix in (".jpg", ".png"):
        candidates = ranked([0], 7, None, 1, suffix)
        folder.save(PromptRecord("a cat", 0, None, {"clip": NO_TEXT}, candidates), np.zeros((1, 8, 8, 3), np.uint8))
    assert folder.records()[0].sampler == {"clip": NO_TEXT}
    assert Image.open(folder.prompt_folder(0) / "image_rank_001.png").text["clip"] == "caf\\udce9"
    write_sheet(folder, folder.records(), ".png", [NO_TEXT])
    assert "<p>caf\\udce9</p>" in (folder.path / "index.html").read_text("utf-8")


def test_captions_of_a_damaged_record_are_refused(reranked, tmp_path):
    shutil.copytree(reranked, tmp_path / "00000")
    written = (tmp_path / "00000" / "metadata.json").read_text()
    (tmp_path / "00000" / "metadata.json").write_text(written.replace("a dog", "a \\ud800"))
    with pytest.raises(GlideError, match="is not valid Unicode"):
        main(["--resume", str(tmp_path / "00000")])


def test_a_terminal_without_a_character_is_no_obstacle(base, tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    given = ["--checkpoint", base, "--prompts", "a cat", "--output_dir", tmp_path, "--negative_prompt", "caf\xe9"]
    assert call("evaluate.py", *given, "--dry_run") == 0
    terminal.flush()
    assert b"caf\\xe9" in terminal.buffer.getvalue()


def test_the_contact_sheet_shows_all_pictures_and_escapes_captions(reranked):
    page = (reranked / "index.html").read_text()
    assert page.count("<img") == 6
    assert "<b>hat" not in page
    assert "a &lt;b&gt;hat&lt;/b&gt; &amp; &#x27;cup&#x27;" in page


def test_the_grid_drops_no_picture(reranked):
    sheet, files = pixels(reranked / "grid.png"), list(reranked.glob("prompt_*/image_rank_*.png"))
    for file in files:
        large = pixels(file).repeat(8, 0).repeat(8, 1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], large.shape[:2])
        assert (windows == large[..., 0]).all((-1, -2)).any()
    assert len(files) == 6


def test_the_upsampler_draws_the_pictures_that_are_kept(base, tmp_path):
    upsampler = save_model(tmp_path / "up", UPSAMPLER, noise_schedule="linear")
    run(base, tmp_path, "--upsampler", upsampler, "--upsampler_num_steps", 2, "--num_images", 4, prompts="a cat")
    assert pixels(tmp_path / "00000" / "prompt_000" / "image_rank_001.jpg").shape == (16, 16, 3)


def test_a_dry_run_writes_nothing(base, tmp_path, capsys):
    run(base, tmp_path / "out", "--dry_run")
    assert not (tmp_path / "out").exists()
    out = capsys.readouterr().out
    assert "prompts: 3" in out
    assert "nothing was generated or written" in out


def test_a_prompt_file_has_a_prompt_a_line(base, tmp_path, capsys):
    given = ["--checkpoint", base, "--prompt_file", str(tmp_path / "prompts.txt"), "--dry_run"]
    (tmp_path / "prompts.txt").write_text("\n".join(f"a cat {i}" for i in range(7)) + "\n\n")
    main(given)
    assert "prompts: 7\n" in capsys.readouterr().out
    (tmp_path / "prompts.txt").write_text("\n \n")
    with pytest.raises(GlideError, match=r"--prompt_file .*prompts\.txt is empty"):
        main(given)


@pytest.mark.parametrize("content", ["{", "[]", '{"prompt": "a dog"}'])
def test_a_damaged_record_says_what_to_remove(tmp_path, content):
    folder = RunFolder.create(tmp_path, ["a cat"], {}, "cpu")
    folder.prompt_folder(0).mkdir()
    (folder.prompt_folder(0) / "metadata.json").write_text(content)
    with pytest.raises(GlideError, match=r"is damaged: remove it, and --resume .* generates the prompt again"):
        folder.records()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_images", 0], "num_images must be at least 1"),
        (["--seed", -1], "seed must be in"),
        (["--num_steps", 0], "num_steps"),
        (["--clip_rerank", "--num_images", 2], "leave out --num_images"),
        (["--clip_rerank", "--clip_top_k", 40], "--clip_top_k 40 must be between 1 and --clip_candidates 32"),
        (["--clip_rerank", "--clip_model", "noised"], "give --clip TEXT IMAGE"),
        (["--checkpoint", "/nowhere"], "no such folder"),
        (["--prompts", "a cat||a dog"], "has an empty one"),
        (["--prompts", __file__], "is a file: give --prompt_file"),
        # Too long for the name of a file.
        (["--prompts", "\u00e9" * 200, "--clip_rerank", "--num_images", 2], "leave out --num_images"),
        (["--batch_size", 0], "batch_size must be at least 1"),
        (["--prompts", "a cat|caf\udce9"], r"'caf\\udce9' is not valid Unicode: is the command line in another"),
        (["--negative_prompt", "\ud800"], r"'\\ud800' is not valid Unicode"),
        (["--dry_run", "--num_steps", 2000], "cannot take 2000 timesteps"),
        (["--dry_run", "--clip_guidance_scale", 2], "needs a noised CLIP"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(base, tmp_path, arguments, message):
    with pytest.raises(GlideError, match=message):
        run(base, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_the_noised_clip_scores_pictures_of_any_size_in_any_batch(clip):
    loaded = LoadedClip.from_checkpoints(*clip)
    images = np.random.RandomState(0).randint(0, 256, (5, 24, 24, 3)).astype(np.uint8)
    scores = [score(NoisedClipScorer(loaded, size), images, "a cat") for size in (4, 8)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    assert np.ptp(scores[0]) > 1e-3


def test_batches_are_cut_alike_whatever_is_wanted():
    job = Job(("a", "b", "c"), 3)
    assert job.batches(4, {0, 1, 2}) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert job.batches(4, {2}) == [[4, 5, 6, 7], [8]]
    assert job.batches(4, set()) == []
