"""What stage 1 sees in pictures: for the report, and for sources that read factors from the lesion mask."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, pipeline
from vgjax.context import Context

BATCH = 32


class PriorView:
    """Stage 1 applied to pictures."""

    def __init__(self, context: Context):
        prior = build.Model(build.prior(context.config), context.variables("prior"))
        size, intensity = build.prior_size(context.config), context.config.data.intensity
        self._apply = jax.jit(lambda image: pipeline.encode(prior, pipeline.prior_input(image, size, intensity)))
        self._grid = context.config.prior.grid

    def __call__(self, pictures: np.ndarray) -> dict[str, Any]:
        """anatomy (N, H, W, K), lesion (N, H, W) probability, reconstruction (N, H, W, 3) uint8, factors by channel."""
        parts = []
        for start in range(0, len(pictures), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(pictures) - 1)
            output = self._apply(jnp.asarray(pictures[rows]))
            rebuilt = jnp.round((jnp.clip(output.reconstruction_BHWC, -1, 1) + 1) * 127.5).astype(jnp.uint8)
            factors = pipeline.by_channel(pipeline.raw_factors(output, self._grid))
            part = dict(anatomy=output.anatomy_BHWK, lesion=output.segmentation_BHWS[..., 1], reconstruction=rebuilt)
            parts.append(jax.device_get({**part, "factors": factors}))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(pictures)], *parts)
