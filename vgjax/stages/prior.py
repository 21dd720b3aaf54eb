"""Stage 1: the visual prior learns to factor pictures into anatomy and modality."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, losses, pipeline
from vgjax.config import Config, ConfigError
from vgjax.context import Context
from vgjax.data import records
from vgjax.models import vgg
from vgjax.stages.base import Batch, Stage, Terms
from vgjax.weights import WeightsError, from_torch, into, load


class PriorStage(Stage):
    """The stage on a run's pictures and masks."""

    name, columns = "prior", ("pictures",)

    def __init__(self, context: Context):
        super().__init__(context)
        self._module, self._size = build.prior(context.config), build.prior_size(context.config)
        c = context.config.prior
        self.frozen = load_features(c.vgg_path) if c.weight_perceptual else None
        terms = ("kl", "dice", "regression", "perceptual", "appearance", "consistency")
        self.weights = {"reconstruction": c.weight_l1} | {name: getattr(c, f"weight_{name}") for name in terms}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        variables = self._module.init(key, jnp.zeros((2, self._size, self._size, 3)))
        return variables.pop("params"), variables

    def _sees(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Pictures in [-1, 1] and lesion masks at stage 1's size."""
        image = pipeline.prior_input(batch["image"], self._size, self._config.data.intensity)
        return image, pipeline.resized_mask(batch["mask"], self._size)

    def loss(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array):
        c = self._config.prior
        image, lesion = self._sees(batch)
        if c.flip:
            image, lesion = mirror(jax.random.fold_in(key, 1), image, lesion)
        variables = {"params": params, **model_state}
        output, terms, model_state = pipeline.prior_losses(self._module, variables, image, lesion, key)
        if c.weight_perceptual:
            terms["perceptual"] = vgg.perceptual(frozen, output.reconstruction_BHWC, image)
        return terms, model_state

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Terms:
        image, lesion = self._sees(batch)
        output = build.Model(self._module, {"params": params, **model_state})(image)
        dice = losses.dice_score(output.segmentation_BHWS[..., 1] > 0.5, lesion > 0)
        return {"score": 1.0 - dice, "dice": dice, "reconstruction": losses.l1(output.reconstruction_BHWC, image)}

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """PNG bytes -> image (H, W, 3) and mask (H, W), uint8."""
        return {name: records.from_png(row[name]) for name in ("image", "mask")}

    def pretrained(self) -> tuple[Any, Any] | None:
        return load_pretrained(self._config)


def load_pretrained(config: Config) -> tuple[Any, Any] | None:
    """Parameters and running statistics from the file that config key `prior.weights` names in the place of training.

    Raises:
      ConfigError: it cannot be read, or does not fit the config's sizes.
    """
    if not config.prior.weights:
        return None
    size = build.prior_size(config)
    inputs = (jnp.zeros((1, size, size, 3)),)
    variables = into(build.prior(config), inputs, "sdnet", config.prior.weights, "prior.weights")
    return variables.pop("params"), variables


def load_features(path: str) -> Any:
    """Variables of the perceptual term's network, from torchvision's VGG-19.

    Raises:
      ConfigError: no file of weights, or those of something else.
    """
    try:
        tensors, _ = load(path)
        return from_torch("vgg19", tensors, where=f"'{path}', taken for torchvision's VGG-19")[1]
    except WeightsError as error:
        raise ConfigError(f"config key 'prior.vgg_path': {error}") from None


def mirror(key: jax.Array, *pictures: jax.Array) -> tuple[jax.Array, ...]:
    """Pictures (B, H, W) or (B, H, W, C) mirrored along either axis with probability 1/2, alike in all arguments."""
    for axis, k in zip((1, 2), jax.random.split(key), strict=True):
        turned_B = jax.random.bernoulli(k, 0.5, (len(pictures[0]),))
        pictures = tuple(jax.vmap(jnp.where)(turned_B, jnp.flip(x, axis), x) for x in pictures)
    return pictures
