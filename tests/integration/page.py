"""The configuration of the runs that tests start: the model and the training step that other tests compile too."""

from dataclasses import asdict

from glide_jax.config import default_config
from tests.tiny.training import MODEL, make_config


def get_config():
    config, train = default_config(), make_config()
    config.model.update(asdict(MODEL))
    config.data.path = "datasets/emoji/train-food-3d.tar"
    config.data.validation_path = "datasets/emoji/val-food-3d.tar"
    config.train.batch_size = train.batch_size
    config.train.optimizer.update(asdict(train.optimizer))
    config.train.log_every = 1
    for name in ("sample_every", "validate_every", "save_every"):
        config.train[name] = 0
    config.train.preview.count = 2
    config.train.preview.options.num_steps = 2
    return config
