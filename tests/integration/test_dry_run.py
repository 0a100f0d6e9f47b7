"""`train.py --dry_run` as a user runs it."""

import numpy as np
from PIL import Image

from tests.integration.test_exactness import TINIEST
from tests.integration.test_train_and_sample import run


def test_a_rehearsal_shows_everything_and_leaves_one_picture(tmp_path):
    result = run("train.py", *TINIEST, f"--config.run_dir={tmp_path}", "--dry_run")
    assert result.returncode == 0, result.stderr
    for part in ("text/token_embedding", "1,608,224", "memory, mesh 1 x 1", "activations and gradients", "TFLOP"):
        assert part in result.stdout, result.stdout
    (picture,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert picture == tmp_path / "samples" / "dry_run.png"
    assert np.asarray(Image.open(picture)).shape[1] > 96


def test_what_a_run_refuses_the_rehearsal_refuses_too(tmp_path):
    result = run("train.py", *TINIEST, f"--config.run_dir={tmp_path}", "--dry_run", "--config.train.trainable=text")
    assert result.returncode == 2
    assert "give --config.init_from=DIR" in result.stderr.strip().splitlines()[-1]
