"""The segmentor that factors of real pictures are read with: an architecture, a seed and a loss of its own.

Stage 1's own segmentor helps to make what the pictures are drawn from, so that its readings would be circular.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vgjax import build, losses, pipeline
from vgjax.context import Context
from vgjax.data import records
from vgjax.evaluation.readouts import in_batches
from vgjax.stages.base import Batch, Stage, Terms
from vgjax.train import producer

INTENSITY = "dataset"  # whatever the config says: all rows of a table are read by one reader


class ReaderStage(Stage):
    """Its training, on the real pictures and masks of the training split."""

    name, columns = "reader", ("pictures",)
    weights = {"cross_entropy": 1.0, "dice": 1.0}  # noqa: RUF012

    def __init__(self, context: Context):
        super().__init__(context)
        self._module, self._size = build.reader(context.config), context.config.reader.image_size

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        return {"unet": self._module.init(key, jnp.zeros((1, self._size, self._size, 3)))["params"]}, {}

    def _logits(self, params: Any, image_BHWC: jax.Array, mask_BHW: jax.Array) -> tuple[jax.Array, jax.Array]:
        """With the mask at their resolution."""
        logits = build.Model(self._module, {"params": params["unet"]})(image_BHWC)
        return logits, pipeline.resized_mask(mask_BHW, logits.shape[1])

    def loss(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array):
        # In many styles, so that those of drawn pictures do not surprise it.
        image = pipeline.restyle(key, pipeline.prior_input(batch["image"], self._size, INTENSITY))
        logits, mask = self._logits(params, image, batch["mask"])
        entropy = optax.sigmoid_binary_cross_entropy(logits, mask).mean((1, 2))
        return {"cross_entropy": entropy, "dice": losses.dice(jax.nn.sigmoid(logits), mask)}, {}

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Terms:
        image = pipeline.prior_input(batch["image"], self._size, INTENSITY)
        logits, mask = self._logits(params, image, batch["mask"])
        return {"score": 1.0 - losses.dice_score(logits > 0, mask > 0)}

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: records.from_png(row[name]) for name in ("image", "mask")}


class LesionView:
    """The trained segmentor applied to pictures (N, H, W, 3) uint8: probability of the lesion (N, h, w)."""

    def __init__(self, context: Context):
        params = context.variables("reader")["params"]["unet"]
        model = build.Model(build.reader(context.config), {"params": params})
        size = context.config.reader.image_size
        self._apply = jax.jit(lambda image: jax.nn.sigmoid(model(pipeline.prior_input(image, size, INTENSITY))))

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        return in_batches(self._apply, pictures)


READER = producer("reader", ReaderStage, ("seed", "reader.*"), ("pictures",))
