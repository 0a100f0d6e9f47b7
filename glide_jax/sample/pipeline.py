"""Prompts to images: base model, then upsampler; uint8 images out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, cast

import numpy as np
from jaxtyping import Float

from glide_jax.errors import GlideError
from glide_jax.images import ImageSource, from_uint8, to_uint8
from glide_jax.options import build
from glide_jax.sample.conditioning import Inputs
from glide_jax.sample.image_inputs import load_image
from glide_jax.sample.loading import LoadedClip, LoadedModel, check_upsampler
from glide_jax.sample.options import (
    IMAGE_STRENGTH,
    SampleOptions,
    base_flags,
    of_upsampler,
    overruled,
    upsampler_flags,
    upsampling,
)
from glide_jax.sample.pretrained import Pretrained, check_settings, new_folder, with_recorded, write_index
from glide_jax.sample.prompts import Prompt
from glide_jax.sample.requests import (
    check_names,
    check_numbers,
    check_prompts,
    check_weights,
    checked_noise,
    checked_seed,
    checked_size,
    inpainted,
    is_image,
    of_real,
    one_each,
    one_per_image,
    repeated,
    unseen,
)
from glide_jax.sample.samples import Samples, cut
from glide_jax.sample.stage import OnSteps


class Pipeline:
    """Text to image: a base model, an upsampler, or one after the other.

    Args:
        base: generates images from text.
        upsampler: enlarges images.
        clip: the noised CLIP, for `clip_guidance_scale`.
        batch_size: images generated at once; longer requests are split.
        settings: default options of both models, by the flags of `sample.py`.

    Raises:
        GlideError: neither model is given, one is of the wrong kind, or the two do not fit each other.
    """

    def __init__(
        self,
        base: LoadedModel | None = None,
        upsampler: LoadedModel | None = None,
        clip: LoadedClip | None = None,
        batch_size: int = 16,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if base is None and upsampler is None:
            raise GlideError("no model: give a base checkpoint, an upsampler, or both")
        if base is not None and base.stage.model.config.super_res:
            raise GlideError("the base checkpoint is an upsampler; give a base model, or give it as the upsampler")
        if upsampler is not None:
            check_upsampler(upsampler.stage.model.config, None if base is None else base.stage.model.config)
        if batch_size < 1:
            raise GlideError(f"batch_size must be at least 1, not {batch_size}")
        self.base, self.upsampler, self.clip, self.batch_size = base, upsampler, clip, batch_size
        check_settings(settings)
        self.settings = dict(settings)

    def __repr__(self) -> str:
        configs = [model.stage.model.config for model in (self.base, self.upsampler) if model is not None]
        models = ", ".join(f"{config.kind} of {config.image_size} px" for config in configs)
        return f"Pipeline({models}, {self.settings})"

    @classmethod
    def from_checkpoints(
        cls,
        base: str | Path | None = None,
        upsampler: str | Path | None = None,
        *,
        clip_text: str | Path | None = None,
        clip_image: str | Path | None = None,
        dtype: str = "float32",
        batch_size: int = 16,
        lora: Sequence[str | Path] = (),
        weights: bool = True,
    ) -> Self:
        """Loads models from checkpoint folders; the two towers of the noised CLIP must be given together.

        Models and adapters distilled to few steps bring their settings. `lora` lists adapters of the base model, or of
        an upsampler alone, each as PATH or PATH:SCALE. With `weights` false this is immediate: the pipeline can check
        requests (`batches`, `upsample_batches`) but not run them.
        """
        if (clip_text is None) != (clip_image is None):
            raise GlideError("the noised CLIP needs both clip_text and clip_image")
        load_clip = LoadedClip.from_checkpoints if weights else LoadedClip.without_weights
        load = LoadedModel.from_checkpoint if weights else LoadedModel.without_weights
        clip = None if clip_text is None or clip_image is None else load_clip(clip_text, clip_image)
        return cls(
            None if base is None else load(base, dtype, clip, lora),
            None if upsampler is None else load(upsampler, dtype, lora=() if base is not None else lora),
            clip,
            batch_size,
            with_recorded({}, base, upsampler, lora),
        )

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """Loads a pipeline written by `save_pretrained`, with its settings.

        Args:
            name: its folder; or hf://USER/NAME, hf://USER/NAME@REVISION of the Hugging Face Hub.
            **options: for `from_checkpoints`, but for the models.

        Raises:
            GlideError: it does not exist, cannot be downloaded, or does not hold what its index says.
        """
        if given := {"base", "upsampler"} & options.keys():
            raise GlideError(f"{' and '.join(sorted(given))} cannot be given: from_checkpoints combines models")
        check_names(options, cls.from_checkpoints)
        whole = Pretrained.open(name)
        loaded = cls.from_checkpoints(whole.base, whole.upsampler, **options)
        loaded.settings = with_recorded(whole.settings, whole.base, whole.upsampler, options.get("lora", ()))
        return loaded

    def save_pretrained(self, folder: str | Path, *, dtype: str = "float32") -> None:
        """Writes the models, with adapters merged, and the settings as one folder; the noised CLIP is left out.

        `python -m convert bundle --safetensors` writes one with safetensors files, which PyTorch can also read.

        Args:
            folder: a new one.
            dtype: type of the stored weights; bfloat16 halves their size.

        Raises:
            GlideError: the folder exists, or it cannot be written.
        """
        folder = Path(folder).expanduser()
        check_settings(self.settings)
        parts = {"base": self.base, "upsampler": self.upsampler}
        models = {part: model for part, model in parts.items() if model is not None}
        with new_folder(folder):
            for part, model in models.items():
                model.save(folder / part, dtype)
            write_index(folder, {part: part for part in models}, self.settings)

    def __call__(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        num_images: int = 1,
        options: SampleOptions | None = None,
        upsampler_options: SampleOptions | Mapping[str, Any] | None = None,
        seed: int | None = 0,
        on_steps: OnSteps | None = None,
        indices: Sequence[int] | None = None,
        negative_prompt: Prompt | Sequence[Prompt] = "",
        init_image: ImageSource | Sequence[ImageSource] | None = None,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        x_t: Float[np.ndarray, "n height width 3"] | None = None,
        size: tuple[int, int] | None = None,
        **changes: Any,
    ) -> Samples:
        """Generates images of each prompt with the base model, and enlarges them if there is an upsampler.

        Args:
            prompts: one or several; `weighted` and `interpolated` make prompts of more than one text.
            num_images: images per prompt.
            options: of the base model; None is `settings`.
            upsampler_options: the upsampler's options, or changes by name to those in `settings` and GLIDE's own
                ("fast27" DDIM, no guidance).
            seed: in [0, 2^31); image i of the request is the same whatever the batch size. None chooses one, which the
                samples have.
            on_steps: called with the number of image evaluations just done (5 steps of a batch of 4 are 20) and the
                current prediction of the images, in [-1, 1]; an exception from it ends the sampling.
            indices: numbers of the images, instead of 0, 1, ...: generates a part of a larger request.
            negative_prompt: what guidance leads away from: one, or one for each prompt.
            init_image: image to start from (image to image), or one for each prompt; `strength` is how far to depart
                from it, by default 0.6.
            image, mask: image to inpaint with an inpainting model, and the mask: white is kept, black is inpainted.
            x_t: noise to start from instead of the seed's, one for all or one for each image, as from `invert`.
            size: (height, width) of the base model's images; None for the square it was trained on.
            **changes: to `options`, by name: sampler, num_steps, guidance_scale, ...; with `upsampler_` before it, to
                `upsampler_options`.

        Raises:
            GlideError: no prompts, invalid options, or images that the models cannot use.
        """
        check_weights(self.base)
        check_names(changes, Pipeline.__call__)
        rows = one_per_image(prompts, num_images)
        if up_changes := upsampler_flags(changes):
            changes = {name: value for name, value in changes.items() if not of_upsampler(name)}
            if isinstance(upsampler_options, SampleOptions):
                upsampler_options = build(SampleOptions, up_changes, base=upsampler_options)
            else:
                upsampler_options = {**(upsampler_options or {}), **up_changes}
        if options is None and init_image is not None and "strength" not in self.settings:
            changes = {"strength": IMAGE_STRENGTH} | changes
        batches = list(
            self.batches(
                rows, range(len(rows)) if indices is None else indices,
                options=self._base_options(options, changes),
                upsampler_options=upsampler_options, seed=seed, on_steps=on_steps,
                negative_prompt=repeated(negative_prompt, num_images), init_image=repeated(init_image, num_images),
                image=image, mask=mask, x_t=x_t, size=size,
            )
        )  # fmt: skip
        return Samples.joined(batches)

    def batches(
        self,
        prompts: Sequence[Prompt],
        indices: Sequence[int],
        *,
        options: SampleOptions,
        upsampler_options: SampleOptions | Mapping[str, Any] | None = None,
        seed: int | None = 0,
        on_steps: OnSteps | None = None,
        negative_prompt: Prompt | Sequence[Prompt] = "",
        init_image: ImageSource | Sequence[ImageSource] | None = None,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        x_t: Float[np.ndarray, "n height width 3"] | None = None,
        size: tuple[int, int] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Samples]:
        """Checks a request immediately, then generates batch by batch; arguments as for a call, except these.

        Args:
            prompts, indices: the prompt and number of each image; negative prompts and images to start from, if there
                are several, are one for each image too.
            options: of the base model; a strength below 1 needs an image to start from.
            batch_size: images per batch, at most `self.batch_size`; a short last batch is padded to it, so that it runs
                the same program. By default all images.
        """
        base = self.base
        if base is None:
            raise GlideError("no base model: an upsampler alone enlarges images (Pipeline.upsample, or --image)")
        check_numbers(indices, len(prompts))
        seed = checked_seed(seed)
        negatives = one_each("negative_prompt", negative_prompt, len(prompts))
        check_prompts([negative_prompt] if negatives is None else negatives)
        starts = one_each("init_image", init_image, len(prompts))
        if options.strength < 1 and init_image is None:
            raise GlideError(f"strength {options.strength:g} needs an image to start from: give init_image")
        if (image is None) != (mask is None):
            raise GlideError(
                "inpainting needs both an image and a mask; for image to image, give init_image; to upsample an image,"
                " call upsample (sample.py: --upsampler without --checkpoint)"
            )
        if image is not None and not base.stage.model.config.inpaint:
            raise GlideError("this base model cannot inpaint: give a base-inpaint checkpoint, or use init_image")
        up_options = self._upsampler_options(upsampler_options)
        if size is not None and options.clip_guidance_scale:
            raise GlideError("the noised CLIP sees images of one size: leave out size or clip_guidance_scale")
        base.stage.check(prompts, options, from_image=init_image is not None)
        base_size = checked_size(base, size)
        if x_t is not None:
            x_t = checked_noise(x_t, len(prompts), base_size)
        known, known_large = inpainted(image, mask, base_size), {}
        if init_image is not None and starts is None:
            known["init_image"] = load_image(cast(ImageSource, init_image), base_size)
        from_each = None if starts is None else np.stack([load_image(each, base_size) for each in starts])
        large: tuple[int, int] | None = None
        if self.upsampler is not None:
            self.upsampler.stage.check(prompts, up_options, from_image=True)
            up = self.upsampler.stage.model.config
            height, width = (edge * up.image_size // up.low_res_size for edge in base_size)
            large = checked_size(self.upsampler, (height, width), " of what the upsampler makes")
            known_large = inpainted(image, mask, large)

        def inputs(known: dict[str, np.ndarray], picked: list[int], **more: Any) -> Inputs:
            more |= {name: np.repeat(array[None], len(picked), axis=0) for name, array in known.items()}
            negative = negative_prompt if negatives is None else [negatives[i] for i in picked]
            return Inputs([prompts[i] for i in picked], [indices[i] for i in picked], negative, **more)

        def batch(picked: list[int], real: int) -> Samples:
            report = of_real(on_steps, real)
            own = {"x_t": None if x_t is None else x_t[picked]}
            own |= {} if from_each is None else {"init_image": from_each[picked]}
            given = inputs(known, picked, size=base_size, **own)
            clip_params = None if self.clip is None else self.clip.params
            images = base.generate(given, options, seed, report, clip_params)
            small = None
            if self.upsampler is not None:
                up_inputs = inputs(known_large, picked, low_res=from_uint8(images), size=large)
                images, small = self.upsampler.generate(up_inputs, up_options, seed, report), images[:real]
            mine = picked[:real]
            return Samples(images[:real], [str(prompts[i]) for i in mine], [indices[i] for i in mine], seed, small)

        return (batch(*cut) for cut in cut(len(prompts), batch_size or min(self.batch_size, len(prompts))))

    def upsample(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompts: Prompt | Sequence[Prompt] = "",
        *,
        options: SampleOptions | None = None,
        seed: int | None = 0,
        on_steps: OnSteps | None = None,
        **changes: Any,
    ) -> Samples:
        """Enlarges images of any size, which are first resized to the upsampler's input size.

        Args:
            images: one or several; files, PIL images or uint8 arrays.
            prompts: what they show: one for all, or one for each.
            options: of the upsampler; None is `settings`.
            seed, on_steps: as in a call.
            **changes: to `options`, by name, with or without `upsampler_` before it.
        """
        check_weights(self.upsampler)
        check_names(changes, Pipeline.upsample)
        changes = {name: value for name, value in changes.items() if not of_upsampler(name)} | upsampler_flags(changes)
        return Samples.joined(list(self.upsample_batches(images, prompts, options, seed, on_steps, **changes)))

    def upsample_batches(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompts: Prompt | Sequence[Prompt] = "",
        options: SampleOptions | None = None,
        seed: int | None = 0,
        on_steps: OnSteps | None = None,
        **changes: Any,
    ) -> Iterator[Samples]:
        """Checks an `upsample` request immediately, then enlarges batch by batch."""
        upsampler = self.upsampler
        if upsampler is None:
            raise GlideError("no upsampler was given")
        several = [images] if is_image(images) else list(cast(Sequence[ImageSource], images))
        rows = one_per_image(prompts, 1) * (len(several) if isinstance(prompts, Prompt) or len(prompts) == 1 else 1)
        if len(rows) != len(several) or not rows:
            raise GlideError(f"{len(rows)} prompts for {len(several)} images: give one for all, or one each")
        seed = checked_seed(seed)
        up_options = build(SampleOptions, changes, base=options) if options else self._upsampler_options(changes)
        upsampler.stage.check(rows, up_options, from_image=True)
        size = upsampler.stage.model.config.low_res_size
        low_res = np.stack([load_image(image, size) for image in several])

        def batch(picked: list[int], real: int) -> Samples:
            inputs = Inputs([rows[i] for i in picked], picked, low_res=low_res[picked])
            enlarged = upsampler.generate(inputs, up_options, seed, of_real(on_steps, real))[:real]
            mine = picked[:real]
            return Samples(enlarged, [str(rows[i]) for i in mine], mine, seed, to_uint8(low_res[mine]))

        return (batch(*cut) for cut in cut(len(rows), min(self.batch_size, len(rows))))

    def invert(
        self,
        image: ImageSource,
        prompt: str = "",
        options: SampleOptions | None = None,
        *,
        size: tuple[int, int] | None = None,
        **changes: Any,
    ) -> Float[np.ndarray, "1 height width 3"]:
        """The noise from which DDIM generates `image` for `prompt`: pass it to a call as `x_t`, with the same levels.

        `size` is that of a call, (height, width).

        Guidance is off unless `guidance_scale` is given; the closer it is to 1, the more exact the inversion.
        """
        if self.base is None:
            raise GlideError("no base model was given")
        stage = self.base.stage
        start = load_image(image, checked_size(self.base, size))[None]
        usual = {} if options else {"sampler": "ddim", "guidance_scale": 1.0}
        sample_options = self._base_options(options, usual | changes)
        return np.asarray(stage.invert(self.base.params, Inputs([prompt], [0], init_image=start), sample_options))

    def doubts(
        self,
        options: SampleOptions | None = None,
        upsampler_options: SampleOptions | Mapping[str, Any] | None = None,
        *,
        prompts: Sequence[str] = (),
        from_image: bool = False,
    ) -> list[str]:
        """Warnings, one line each, about too long prompts and about options likely to give poor images.

        Arguments and errors are those of a call.
        """
        first = self.base or self.upsampler
        assert first is not None
        lines = [unseen(prompt, first.stage.model.config.text_ctx) for prompt in prompts]
        if self.base is not None:
            lines.append(self.base.stage.doubt(self._base_options(options, {}), from_image=from_image))
        if self.upsampler is not None:
            of_upsampler = self.upsampler.stage.doubt(self._upsampler_options(upsampler_options), from_image=True)
            lines.append(of_upsampler and f"of the upsampler, {of_upsampler}")
        return [line for line in lines if line]

    def count_evaluations(
        self,
        images: int,
        options: SampleOptions | None = None,
        upsampler_options: SampleOptions | Mapping[str, Any] | None = None,
        *,
        from_image: bool = False,
    ) -> int:
        """The number of image evaluations `on_steps` will report for that many images; arguments as for a call."""
        total = 0
        if self.base is not None:
            options = self._base_options(options, {})
            total += self.base.stage.count_evaluations(options, from_image=from_image)
        if self.upsampler is not None:
            total += self.upsampler.stage.count_evaluations(self._upsampler_options(upsampler_options), from_image=True)
        return images * total

    def _base_options(self, options: SampleOptions | None, changes: Mapping[str, Any]) -> SampleOptions:
        if options is not None:
            return build(SampleOptions, changes, base=options)
        return build(SampleOptions, overruled(base_flags(self.settings), changes))

    def _upsampler_options(self, options: SampleOptions | Mapping[str, Any] | None) -> SampleOptions:
        if isinstance(options, SampleOptions):
            return options
        return upsampling(overruled(upsampler_flags(self.settings), options or {}))
