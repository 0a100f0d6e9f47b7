"""A few images of one thing, with LoRA and prior preservation (DreamBooth, arXiv:2208.12242): see docs/finetune.md.

    python train.py --config configs/few_images.py --config.data.path=my-dog --config.init_from=models/base \\
        --config.train.prior.prompts="a photo of a dog"

Device: as for glide_base, with a sixth of its state; time and quality there are not measured. With the variant `emoji`
(`--config configs/few_images.py:emoji`) the small bundled model learns three images on a CPU, in minutes.
"""

from ml_collections import ConfigDict

from configs import emoji, glide_base


def get_config(model: str = "glide") -> ConfigDict:
    """Adapters of rank 16 over the published base model, or over `checkpoints/emoji/base`."""
    if model == "emoji":
        config = emoji.get_config()
        config.init_from = "checkpoints/emoji/base"
        config.data.path = "my-kite"
        config.data.captions_jsonl = config.data.caption_key = ""
        config.data.validation_path = ""
        config.train.prior.prompts = (
            "a 3d render of a turtle",
            "a flat icon of a strawberry",
            "a shaded drawing of a fox",
        )
        config.train.optimizer.learning_rate = 1e-3
        config.train.optimizer.warmup_steps = 10
        config.train.batch_size = 8
        config.train.max_steps = 200
        config.train.lora.targets = ("unet/*/attn/*", "unet/*/*conv", "text/*")
    elif model == "glide":
        config = glide_base.get_config()
        config.data.filters.update({"min_size": 0, "min_aspect": 0.0, "max_aspect": float("inf"), "nsfw_labels": ()})
        config.train.batch_size = 4
        config.train.max_steps = 800
    else:
        raise ValueError(f"unknown model {model!r}: use glide or emoji")
    config.run_dir = "runs/few_images"
    config.data.source = "folder"
    # Neither cut nor mirrored: of a few images every part is needed, and their thing may have a left and a right.
    config.data.crop = "center"
    config.data.uncond_p = 0.1
    config.train.lora.rank = 16
    config.train.optimizer.lr_schedule = "constant"
    config.train.optimizer.ema_decay = 0.98
    config.train.log_every = 20
    config.train.sample_every = 100
    config.train.validate_every = 0
    config.train.save_every = 100
    return config
