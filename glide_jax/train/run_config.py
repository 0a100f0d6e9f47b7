"""Everything that decides a training run."""

from dataclasses import dataclass

from glide_jax.data import DataConfig
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.models import ModelConfig
from glide_jax.parallel import ParallelConfig
from glide_jax.train.config import TrainConfig


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a training run.

    Attributes:
        run_dir: folder of checkpoints, logs and grids; running again with the same folder continues.
        init_from: checkpoint or converted model whose weights to start from; empty starts from fresh ones.
        model, diffusion, data, train, parallel: as their classes say.
    """

    run_dir: str = "runs/glide"
    init_from: str = ""
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
