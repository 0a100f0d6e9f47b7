"""The built wheel, installed in an environment of its own and used away from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.programs import ROOT

UV = os.environ.get("UV") or shutil.which("uv")

PROGRAM = """
import dataclasses, sys
from pathlib import Path

import jax
import glide_jax
from glide_jax.checkpoint import save_weights
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.images import save_png
from glide_jax.models import Glide, ModelConfig
from glide_jax.sample import Pipeline
from glide_jax.tokenizer import ClipTokenizer, GlideTokenizer

assert Path(glide_jax.__file__).is_relative_to(sys.prefix), glide_jax.__file__
for tokenizer in (GlideTokenizer(), ClipTokenizer()):
    print(tokenizer.encode("a corgi"))

config = ModelConfig(
    image_size=16, num_channels=32, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(),
    num_head_channels=32, text_ctx=8, xf_width=16, xf_layers=1, xf_heads=2,
)
record = {"model": dataclasses.asdict(config), "diffusion": dataclasses.asdict(DiffusionConfig())}
save_weights("weights", jax.jit(Glide(config).init)(jax.random.key(0)), record)
samples = Pipeline.from_checkpoints(base="weights")("a corgi", num_steps=2)
save_png(Path("corgi.png"), samples.images[0])
print(samples.images.shape, samples.images.dtype)
"""


def run(*command: object, cwd: Path) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    [path] = folder.glob("*.whl")
    return path


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="needs uv to install the wheel")
def test_the_installed_wheel_tokenises_loads_and_samples(wheel, tmp_path):
    run(UV, "venv", "--quiet", "--python", sys.executable, "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel, cwd=tmp_path)
    # Its dependencies are those of the environment that runs this test; .pth files there are not followed.
    site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    Path(site_packages, "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    output = run(python, "-W", "error", "-c", PROGRAM, cwd=tmp_path).splitlines()

    # The ids are those of golden/tokens.json.
    assert output == ["[64, 1162, 12397]", "[320, 31320]", "(1, 16, 16, 3) uint8"]
    assert (tmp_path / "corgi.png").is_file()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "glide_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == tracked
    assert all(name.startswith(("glide_jax/", "glide_jax-0.1.0.dist-info/")) for name in names)
    assert {Path(name).name for name in names if "/licenses/" in name} >= {
        "LICENSE",
        "LICENSE-gpt2-vocabulary",
    }
