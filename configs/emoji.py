"""The model in `checkpoints/emoji/base`: 32 px, trained on the animals and foods of the bundled emoji images.

    python train.py --config configs/emoji.py

130 minutes on two slow CPU cores beside other work (jax 0.12). Final training loss (noise MSE) 0.036, validation loss
0.0645.
"""

from ml_collections import ConfigDict

from glide_jax.config import default_config

GROUPS = "{animals,food}"


def get_config() -> ConfigDict:
    """GLIDE's base model in miniature; docs/experiments.md has the ablations."""
    config = default_config()
    config.run_dir = "runs/emoji"
    config.data.path = f"datasets/emoji/train-{GROUPS}-{{3d,flat,drawing}}.tar"
    config.data.validation_path = f"datasets/emoji/val-{GROUPS}-{{3d,flat,drawing}}.tar"
    # Half of the captions are without the style's words, so that what is seen in one style is known in the others.
    config.data.captions_jsonl = "datasets/emoji/captions.jsonl"
    config.data.caption_key = "jsonl:captions"
    config.data.uncond_p = 0.1

    config.model.image_size = 32
    # As each group's mean is removed, 32 groups of one or two channels would take the colours away.
    config.model.norm_groups = 8
    config.model.num_channels = 32
    config.model.channel_mult = (1, 1, 2, 4)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (8, 4)
    config.model.num_head_channels = 32
    config.model.resblock_updown = False
    config.model.dropout = 0.0
    config.model.text_ctx = 16
    config.model.xf_width = 128
    config.model.xf_layers = 2
    config.model.xf_heads = 4

    config.diffusion.prediction_type = "v_prediction"

    config.train.batch_size = 32
    config.train.max_steps = 5159
    config.train.loss.kind = "hybrid"
    config.train.optimizer.kind = "muon"
    config.train.optimizer.learning_rate = 2e-3
    config.train.optimizer.lr_schedule = "cosine"
    config.train.optimizer.warmup_steps = 100
    config.train.optimizer.b2 = 0.99
    config.train.optimizer.ema_decay = 0.999
    config.train.log_every = 100
    config.train.sample_every = 1000
    config.train.validate_every = 500
    config.train.save_every = 250
    config.train.preview.options.num_steps = 25
    config.train.preview.options.eta = 1.0
    return config
