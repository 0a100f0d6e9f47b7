"""Few-step distillation: adapters by which a model needs four steps without guidance: see docs/finetune.md#few-steps.

    python train.py --config configs/few_steps.py --config.data.path="shards/{000..099}.tar" \\
        --config.init_from=models/base-v

`init_from` is a base model that predicts v: GLIDE's own is to be fine-tuned to it first (`configs/glide_base.py`,
`--config.diffusion.prediction_type=v_prediction`). Device: as for few_images; time and quality there are not measured.
With the variant `emoji` (`--config configs/few_steps.py:emoji`) the small bundled model is distilled on a CPU, in
a quarter of an hour.
"""

from ml_collections import ConfigDict

from configs import emoji, glide_base


def get_config(model: str = "glide") -> ConfigDict:
    """Adapters of every layer of the UNet, over a base model or over `checkpoints/emoji/base`."""
    if model == "emoji":
        config = emoji.get_config()
        config.init_from = "checkpoints/emoji/base"
        config.train.batch_size = 16
        config.train.max_steps = 420
        config.train.optimizer.learning_rate = 1e-3
        config.train.optimizer.warmup_steps = 20
        config.train.optimizer.ema_decay = 0.98
        config.train.log_every = 20
        config.train.sample_every = 100
        config.train.save_every = 100
    elif model == "glide":
        config = glide_base.get_config()
    else:
        raise ValueError(f"unknown model {model!r}: use glide or emoji")
    config.run_dir = "runs/few_steps"
    config.diffusion.prediction_type = "v_prediction"
    config.data.uncond_p = 0.0
    config.train.loss.kind = "simple"
    config.train.lora.rank = 64
    config.train.lora.targets = ("unet/*",)
    config.train.distill.num_steps = 4
    config.train.validate_every = 0
    return config
