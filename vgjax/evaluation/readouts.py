"""What stage 1 sees in pictures: for the report and for its own metric."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, pipeline
from vgjax.conditions.base import in_parts
from vgjax.context import Context

BATCH = 32


def in_batches(apply: Callable[[jax.Array], Any], pictures: np.ndarray) -> Any:
    """A compiled function of pictures, `BATCH` of them at a time; arrays of its result begin with N."""
    return in_parts(apply, pictures, len(pictures), BATCH)


class PriorView:
    """Stage 1 applied to pictures."""

    def __init__(self, context: Context):
        prior = build.Model(build.prior(context.config), context.variables("prior"))
        size, intensity = build.prior_size(context.config), context.config.data.intensity
        grid = context.config.prior.grid

        def apply(image: jax.Array) -> dict[str, Any]:
            output = pipeline.encode(prior, pipeline.prior_input(image, size, intensity))
            rebuilt = jnp.round((jnp.clip(output.reconstruction_BHWC, -1, 1) + 1) * 127.5).astype(jnp.uint8)
            factors = pipeline.by_channel(pipeline.raw_factors(output, grid))
            part = dict(anatomy=output.anatomy_BHWK, lesion=output.segmentation_BHWS[..., 1], reconstruction=rebuilt)
            return {**part, "factors": factors}

        self._apply = jax.jit(apply)

    def __call__(self, pictures: np.ndarray) -> dict[str, Any]:
        """anatomy (N, h, w, K), lesion (N, h, w) probability, reconstruction (N, h, w, 3) uint8, factors by channel."""
        return in_batches(self._apply, pictures)
