"""What stage 1 sees in pictures: for the report, and for sources that read factors from the lesion mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, pipeline
from vgjax.context import Run
from vgjax.stages.prior import picture_input


class PriorView:
    """Stage 1 applied to pictures."""

    def __init__(self, run: Run):
        prior = build.Model(build.prior(run.config), run.variables("prior"))
        self._apply = jax.jit(lambda image: pipeline.encode(prior, picture_input(image, run.config)))

    def __call__(self, pictures: np.ndarray, batch: int = 32) -> dict[str, np.ndarray]:
        """anatomy (N, H, W, K), lesion (N, H, W) probability, reconstruction (N, H, W, 3) uint8."""
        parts = []
        for start in range(0, len(pictures), batch):
            rows = np.minimum(np.arange(start, start + batch), len(pictures) - 1)
            output = self._apply(jnp.asarray(pictures[rows]))
            rebuilt = jnp.round((jnp.clip(output.reconstruction_BHWC, -1, 1) + 1) * 127.5).astype(jnp.uint8)
            parts.append([np.asarray(a) for a in (output.anatomy_BHWK, output.segmentation_BHWS[..., 1], rebuilt)])
        joined = [np.concatenate(column)[: len(pictures)] for column in zip(*parts, strict=True)]
        return dict(zip(("anatomy", "lesion", "reconstruction"), joined, strict=True))
