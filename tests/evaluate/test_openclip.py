"""OpenCLIP's real code on a small random model saved to disk."""

import importlib
import json
import os
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.evaluate.cli import main
from glide_jax.evaluate.inception import InceptionFeatures
from glide_jax.evaluate.openclip import ModelName, OpenClipScorer, find_model, parse_name
from glide_jax.evaluate.scorer import score
from tests.tiny.models import save_model

if find_spec("open_clip") is None:
    pytest.skip("open_clip_torch is not installed", allow_module_level=True)
torch = pytest.importorskip("torch", reason="torch is not installed")
try:
    importlib.import_module("torchvision")
except ModuleNotFoundError:
    pass
except RuntimeError:
    # The published torchvision does not find its CUDA operators on a CPU torch; declared, they need never run.
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NAMES = ("ViT-L-14", "ViT-L-14-336", "ViT-B-32", "RN50")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    torch.save(open_clip.CLIP(**CONFIG).state_dict(), path / "open_clip_pytorch_model.bin")
    return path


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).randint(0, 256, (5, 40, 40, 3)).astype(np.uint8)


def direct(folder, images, prompt):
    """The scores from the model's own forward pass, one picture at a time."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.tokenizer.tokenize([prompt])
    with torch.no_grad():
        pairs = [model(preprocess(Image.fromarray(image))[None], tokens) for image in images]
    return [float((image[0] * text[0]).sum()) for image, text, *_ in pairs]


def test_scores_are_the_models_cosines_in_any_batch(folder, images):
    expected = direct(folder, images, "a cat")
    assert np.ptp(expected) > 1e-3
    for size in (2, 16):
        scorer = OpenClipScorer(find_model(str(folder)), batch_size=size)
        np.testing.assert_allclose(score(scorer, images, "a cat"), expected, atol=1e-5)


def test_evaluation_ranks_by_them(folder, tmp_path):
    base = save_model(tmp_path / "base")
    main(["--checkpoint", base, "--prompts", "a cat|a dog", "--output_dir", str(tmp_path / "out"), "--num_steps", "3",
          "--batch_size", "4", "--output_format", "png", "--clip_rerank", "--clip_model", str(folder),
          "--clip_candidates", "4", "--clip_top_k", "4"])  # fmt: skip
    for i, prompt in enumerate(("a cat", "a dog")):
        record = json.loads((tmp_path / "out" / "00000" / f"prompt_{i:03d}" / "metadata.json").read_text())
        files = [tmp_path / "out" / "00000" / f"prompt_{i:03d}" / image["filename"] for image in record["images"]]
        expected = direct(folder, [np.asarray(Image.open(file)) for file in files], prompt)
        np.testing.assert_allclose([image["clip_score"] for image in record["images"]], expected, atol=1e-5)
        assert expected == sorted(expected, reverse=True)
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_an_unusable_scorer_stops_before_any_folder_is_made(folder, tmp_path):
    base = save_model(tmp_path / "base")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    wrong = tmp_path / "wrong.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), wrong)
    for model, file, message in (
        ("ViT-B-32", tmp_path / "bad.pt", "it must be a state dict of this model"),
        ("ViT-B-32", wrong, "it must be a state dict of this model"),
        ("ViT-B-32", tmp_path / "none.pt", "no such file"),
        ("ViT-B-33", wrong, "did you mean ViT-B-32"),
    ):
        with pytest.raises(GlideError, match=message) as caught:
            main(["--checkpoint", base, "--prompts", "a cat", "--output_dir", str(tmp_path / "out"), "--clip_rerank",
                  "--clip_model", model, "--clip_checkpoint", str(file)])  # fmt: skip
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unreachable_weights_name_the_option_for_a_local_file(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise OSError("cannot reach the hub")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", unreachable)
    with pytest.raises(GlideError, match=r"cannot reach the hub.*--clip_checkpoint FILE"):
        OpenClipScorer(ModelName("ViT-B-32", "laion2b_s34b_b79k"))


def test_weights_that_are_not_numbers_are_refused(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    state = torch.load(folder / "open_clip_pytorch_model.bin")
    state["visual.proj"] *= float("nan")
    torch.save(state, broken / "open_clip_pytorch_model.bin")
    with pytest.raises(GlideError, match="not numbers"):
        OpenClipScorer(find_model(str(broken)))


@pytest.mark.parametrize(
    ("given", "model", "tag", "corrected"),
    [
        ("ViT-L-14", "ViT-L-14", None, False),
        ("ViT-L-14/openai", "ViT-L-14", "openai", False),
        ("ViT-L/14", "ViT-L-14", None, True),
        ("ViT-L/14/openai", "ViT-L-14", "openai", True),
        ("ViT-L/14@336px", "ViT-L-14-336", None, True),
        ("RN50/folder/file.pt", "RN50", "folder/file.pt", False),
        ("hf-hub:someone/something", "hf-hub:someone/something", None, False),
    ],
)
def test_names_are_read_as_openclip_and_openai_spell_them(given, model, tag, corrected):
    name = parse_name(given, NAMES)
    assert name[:2] == (model, tag)
    assert (name.note is not None) == corrected


def test_the_usual_weights_are_openais_and_unknown_ones_are_refused():
    assert find_model("ViT-L/14")[:2] == ("ViT-L-14", "openai")
    with pytest.raises(GlideError, match="has no weights 'nope', but openai"):
        find_model("ViT-B-32/nope")


class _Means(torch.nn.Module):
    """Called as the Inception file is."""

    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert pictures.dtype == torch.uint8
        return pictures.float().mean(dim=(2, 3)) if return_features else pictures.float()


# torch.jit is deprecated, but that is what the published file is.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_inception_features_come_from_a_torchscript_file(tmp_path, images):
    torch.jit.script(_Means()).save(str(tmp_path / "net.pt"))
    extractor = InceptionFeatures(tmp_path / "net.pt", batch_size=2)
    np.testing.assert_allclose(extractor.image_features(images), images.mean((1, 2)), rtol=1e-5)
    assert extractor.inception
    (tmp_path / "bad.pt").write_bytes(b"no network")
    with pytest.raises(GlideError, match=r"inception-2015-12-05\.pt"):
        InceptionFeatures(tmp_path / "bad.pt")
