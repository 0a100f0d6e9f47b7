"""A pipeline as a folder of safetensors files, which PyTorch can read as well."""

from dataclasses import asdict
from pathlib import Path

from convert.architecture import glide_architecture
from convert.to_torch import write_model
from glide_jax.sample import Pipeline
from glide_jax.sample.pretrained import new_folder, write_index


def bundle(pipeline: Pipeline, folder: Path, dtype: str) -> None:
    """Like `Pipeline.save_pretrained`, with models as safetensors files; empties the pipeline's models.

    Args:
        pipeline: models and settings; the noised CLIP is left out.
        folder: a new one.
        dtype: type of the stored weights, a key of `DTYPES`.

    Raises:
        GlideError: the files cannot be written.
    """
    models = {"base": pipeline.base, "upsampler": pipeline.upsampler}
    files = {part: f"{part}.safetensors" for part, model in models.items() if model is not None}
    with new_folder(folder):
        for part, model in models.items():
            if model is not None:
                architecture = glide_architecture(model.stage.model.config, asdict(model.stage.diffusion))
                write_model(model.params, architecture, folder / files[part], dtype)
        write_index(folder, files, pipeline.settings)
