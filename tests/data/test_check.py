import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from glide_jax.data.check import check, contact_sheet, describe, survey
from glide_jax.data.config import DataConfig
from glide_jax.data.loader import open_data, open_indexed
from glide_jax.data.sources.webdataset import WebDataset
from tests.programs import ROOT, call


def check_in_process(*arguments):
    return call("-m", "glide_jax.data", "check", *arguments)


def test_the_command_prints_figures_and_writes_the_sheet(write_shard, numbered, tmp_path):
    faults = {2: {"png": b"damaged"}, 3: {"txt": "word " * 50}}
    write_shard("a.tar", [numbered(i) | faults.get(i, {}) for i in range(20)])
    write_shard("b.tar", [{"txt": "no image"}])
    (tmp_path / "c.tar").write_bytes(b"<html>" * 999)
    sheet = tmp_path / "sheet.png"
    result = subprocess.run(
        [sys.executable, "-m", "glide_jax.data", "check", f"{tmp_path}/?.tar", f"--sheet={sheet}", "--image_size=8",
         "--text_ctx=32"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = {line[:24].strip(): line[24:].split() for line in result.stdout.splitlines()}
    assert result.stdout.startswith("20 samples with an image and a caption\n")
    for line in ("left out, missing image: 1", "left out, unreadable shard: 1", "unusable, corrupt image: 1",
                 f"  {tmp_path}/a.tar, sample 2"):  # fmt: skip
        assert f"  {line}\n" in result.stdout
    assert "\n20 of them read, 19 are usable\n" in result.stdout
    assert "training would stop" not in result.stdout
    assert rows["shorter side, pixels"] == ["16"] * 5
    assert rows["width / height"] == ["1"] * 5
    assert rows["caption, characters"][0] == "8"
    assert rows["caption, characters"][-1] == "249"
    assert "captions of 32 tokens or more, which are cut: 5.3%" in result.stdout
    assert f"{tmp_path}/c.tar: unreadable shard" in result.stderr
    with Image.open(sheet) as image:
        assert 4 * 96 < image.width < 6 * 96, "five in a row"


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert check_in_process(tmp_path / "none.tar") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: shard {tmp_path}/none.tar does not exist; correct the data path\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--image_size", 10**7], "images of 10000000x10000000 are too large: at most 4096 pixels a side"),
        (["--buckets", "64x64", "64x8192"], "images of 64x8192 are too large: at most 4096 pixels a side"),
        (["--text_ctx", 0], "text_ctx must be at least 1, not 0"),
        (["--sheet", "FOLDER"], "--sheet FOLDER is a folder: give a file, as FOLDER/sheet.png"),
    ],
)
def test_the_command_complains_of_its_options_before_it_reads(given, message, tmp_path, capsys):
    given = [str(each).replace("FOLDER", str(tmp_path)) for each in given]
    assert check_in_process(tmp_path / "none.tar", *given) == 2
    assert capsys.readouterr().err == f"error: {message.replace('FOLDER', str(tmp_path))}\n"


def test_the_command_takes_the_filters_of_a_run(write_shard, numbered, tmp_path, capsys):
    path = write_shard("a.tar", [numbered(i) | {"txt": word} for i, word in enumerate(["red", "blue", "a red cat"])])
    filters = ["--filters.skip_words", "blue", "green", "--filters.min_caption_length", "4"]
    assert check_in_process(path, "--sheet", tmp_path / "sheet.png", "--image_size", 8, *filters) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 sample with an image and a caption\n")
    assert "\n1 random samples as the model sees them: " in shown
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width < 2 * 96
    assert "  left out, words: 1\n" in shown
    assert "  left out, caption length: 1\n" in shown
    assert check_in_process(path, "--filters.min_aspect", "3", "--filters.max_aspect", "2") == 2
    assert capsys.readouterr().err == "error: data.filters.min_aspect 3.0 must be below max_aspect 2.0\n"


def test_the_command_counts_the_images_of_each_bucket(write_shard, numbered, encode, tmp_path, capsys):
    wide = {"png": encode(np.zeros((10, 16, 3), np.uint8))}
    path = write_shard("a.tar", [numbered(i) | (wide if i < 3 else {}) for i in range(12)])
    sheet = ["--sheet", tmp_path / "sheet.png", "--image_size", 8]
    assert check_in_process(path, *sheet, "--buckets", "8x8", "8x12", "12x8") == 0
    shown = capsys.readouterr().out
    for line in ("12x8: 0 images, 0.0%", "8x8: 9 images, 75.0%", "8x12: 3 images, 25.0%"):
        assert f"\nbucket {line}\n" in shown


def test_the_command_measures_once_what_a_run_then_need_not(write_shard, numbered, tmp_path, monkeypatch):
    path = str(write_shard("a.tar", [numbered(i) | ({"png": b"damaged"} if i == 3 else {}) for i in range(12)]))
    config, measured = DataConfig(path=path, buckets=("8x8", "8x12"), workers=1), []
    image_size = WebDataset.image_size

    def counted(source, index):
        measured.append(index)
        return image_size(source, index)

    monkeypatch.setattr(WebDataset, "image_size", counted)
    for revalidate in (False, True):
        lines, _ = check(replace(config, revalidate=revalidate), tmp_path / "sheet.png", 8, None, 16)
        assert {"bucket 8x8: 11 images, 91.7%", "in no bucket, corrupt image: 1"} <= {*lines}
        assert sorted(measured) == list(range(12))
        measured.clear()
    open_data(config, image_size=8, text_ctx=16, batch_size=4, seed=0).close()
    assert not measured


def test_a_survey_of_many_samples_reads_some(write_shard, numbered, monkeypatch):
    monkeypatch.setattr("glide_jax.data.check._SURVEYED", 5)
    source = open_indexed(DataConfig(path=str(write_shard("a.tar", [numbered(i) for i in range(9)]))))
    found = survey(source)
    assert len(found.widths) == found.read == 5
    assert describe(source, found, 16)[:2] == [
        "9 samples with an image and a caption",
        "5 of them read, 5 are usable",
    ]


@pytest.mark.parametrize("options", [[], ["--buckets", "64x64", "48x80"]])
def test_a_set_without_a_usable_image_is_reported_and_has_no_sheet(tmp_path, capsys, options):
    images, sheet = tmp_path / "images", tmp_path / "sheet.png"
    images.mkdir()
    (images / "a.png").write_bytes(b"damaged")
    (images / "a.txt").write_text("a cat")
    assert check_in_process(images, "--source=folder", f"--sheet={sheet}", *options) == 1
    assert f"    {images}/a.png\ntraining would stop: 100% are unusable" in capsys.readouterr().out
    assert not sheet.exists()


def test_a_set_that_would_stop_a_run_fails_and_names_its_files(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        (images / f"{number:02}.txt").write_text("a cat")
        (images / f"{number:02}.png").write_bytes(b"damaged")
    Image.new("RGB", (16, 16)).save(images / "00.png")
    assert check_in_process(images, "--source=folder", f"--sheet={tmp_path}/sheet.png") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["12 of them read, 1 are usable", "  unusable, corrupt image: 11"]
    assert {*lines[3:13]} < {f"    {images}/{number:02}.png" for number in range(1, 12)}
    assert lines[13] == "    and 1 more"
    assert lines[-1] == "training would stop: 92% are unusable, and --config.data.bad_share is 0.1"


@pytest.mark.parametrize("low_res_size", [None, 4])
def test_the_sheet_shows_what_the_model_sees(numbered_shards, low_res_size):
    config = DataConfig(path=numbered_shards)
    sheet = contact_sheet(config, 32, low_res_size)
    with open_data(config, image_size=32, text_ctx=128, batch_size=64, seed=0) as stream:
        first = next(stream).arrays["image"][0]
    np.testing.assert_array_equal(sheet[8, 8], first[4, 4])
