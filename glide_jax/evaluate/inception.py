"""The features that define FID and KID."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from glide_jax.errors import GlideError, first_line, install
from glide_jax.evaluate.scorer import Images


class InceptionFeatures:
    """The Inception-v3 of FID as TorchScript, `inception-2015-12-05.pt`: 2048 features of images it resizes itself.

    Args:
        checkpoint: the file; it is called as `net(images, return_features=True)` with uint8 [n, 3, height, width].
        batch_size: images at once.

    Raises:
        GlideError: torch is missing, or the file is not this network.
    """

    inception = True
    name = "Inception"

    def __init__(self, checkpoint: Path, batch_size: int = 16) -> None:
        try:
            import torch  # noqa: PLC0415
        except ImportError as error:
            raise GlideError(f"Inception features need torch: {install('torch')}") from error
        self._torch, self._batch = torch, batch_size
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._network = torch.jit.load(str(checkpoint), map_location=self._device).eval()
            self.image_features(np.full((2, 64, 64, 3), 128, np.uint8))
        except Exception as error:
            raise GlideError(
                f"--inception_checkpoint {checkpoint} must be the TorchScript file inception-2015-12-05.pt:"
                f" {first_line(error)[:200]}"
            ) from error

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """See `Extractor`."""
        features = []
        for first in range(0, len(images), self._batch):
            pixels = self._torch.from_numpy(np.stack(list(images[first : first + self._batch]))).permute(0, 3, 1, 2)
            with self._torch.inference_mode():
                out = self._network(pixels.contiguous().to(self._device), return_features=True)
            features.append(out.float().cpu().numpy())
        return np.concatenate(features)
