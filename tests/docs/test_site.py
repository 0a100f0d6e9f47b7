"""The site builds without a warning and without a network, and shows what there is."""

import html
import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

import glide_jax
from tests.programs import ROOT

pytestmark = pytest.mark.slow
pytest.importorskip("sphinx", reason="Sphinx is not installed: uv sync --group docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_page_is_built(site):
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "docs" / "notebook.ipynb"]:
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").exists()


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = re.compile(r"<(?:script|link|img)\b[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*\"")
    assert {page.name: found for page in site.rglob("*.html") if (found := fetched.findall(page.read_text()))} == {}


def test_annotations_are_readable(site):
    text = "".join(map(text_of, (site / "api").glob("*.html")))
    assert "Float[Array, 'batch height width 3']" in text
    assert "np.ndarray, 'n height width 3'" in text
    assert not re.findall(r".{40}(?:_jax\.|~\w+\.|<factory|<function|0x[0-9a-f]{6}).{40}", text)


def test_every_public_name_of_a_package_is_in_the_reference(site):
    anchors = set(re.findall(r'id="([\w.]+)"', "".join(page.read_text() for page in (site / "api").glob("*.html"))))
    packages = [
        glide_jax,
        *(
            importlib.import_module(f"glide_jax.{found.name}")
            for found in pkgutil.iter_modules(glide_jax.__path__)
            if found.ispkg
        ),
    ]
    public = {
        f"{package.__name__}.{name}"
        for package in packages
        for name in dir(package)
        if not name.startswith("_") and callable(value := getattr(package, name)) and value.__doc__ and name != "Params"
    }
    assert len(public) > 40
    assert public - anchors == set()
