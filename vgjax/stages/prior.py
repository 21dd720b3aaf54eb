"""Stage 1: the visual prior learns to factor pictures into anatomy and modality."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import build, losses, pipeline
from vgjax.config import Config, ConfigError
from vgjax.context import Run
from vgjax.data import records
from vgjax.data.stream import ordered_batches
from vgjax.models import vgg
from vgjax.stages.base import Terms
from vgjax.types import Factors
from vgjax.weights import WeightsError, from_torch, into, load

EXTRACT_BATCH = 64


def picture_size(config: Config) -> int:
    """Pixels a side at which stage 1 looks at pictures."""
    return config.prior.image_size or config.data.image_size


def picture_input(image_BHWC: jax.Array, config: Config) -> jax.Array:
    """uint8 pictures -> what stage 1 sees: its size, [-1, 1]."""
    return pipeline.resized(pipeline.to_unit_range(image_BHWC, config.data.intensity), picture_size(config))


class PriorStage:
    """The stage on a run's pictures and masks."""

    name = "prior"

    def __init__(self, run: Run):
        self._run, self._config = run, run.config
        self._module = build.prior(run.config)
        c = run.config.prior
        self.training = c.train
        self.frozen = load_features(c.vgg_path) if c.weight_perceptual else None
        self.weights = {
            "reconstruction": c.weight_l1,
            "kl": c.weight_kl,
            "dice": c.weight_dice,
            "regression": c.weight_regression,
            "perceptual": c.weight_perceptual,
            "appearance": c.weight_appearance,
            "consistency": c.weight_consistency,
        }

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        size = picture_size(self._config)
        variables = self._module.init(key, jnp.zeros((2, size, size, 3)))
        return variables.pop("params"), variables

    def _lesion(self, mask_BHW: jax.Array) -> jax.Array:
        return pipeline.resized_mask(mask_BHW, picture_size(self._config))

    def loss(self, params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array):
        c = self._config.prior
        image, lesion = picture_input(batch["image"], self._config), self._lesion(batch["mask"])
        if c.flip:
            image, lesion = mirror(jax.random.fold_in(key, 1), image, lesion)
        variables = {"params": params, **model_state}
        output, terms, model_state = pipeline.prior_losses(self._module, variables, image, lesion, key)
        if c.weight_perceptual:
            terms["perceptual"] = vgg.perceptual(frozen, output.reconstruction_BHWC, image)
        return terms, model_state

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array]) -> Terms:
        image = picture_input(batch["image"], self._config)
        output = build.Model(self._module, {"params": params, **model_state})(image)
        dice = losses.dice_score(output.segmentation_BHWS[..., 1] > 0.5, self._lesion(batch["mask"]) > 0)
        return {"score": 1.0 - dice, "dice": dice, "reconstruction": losses.l1(output.reconstruction_BHWC, image)}

    def source(self, split: str) -> records.Rows:
        return self._run.rows(["images"], split)

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """PNG bytes -> image (H, W, 3) and mask (H, W), uint8."""
        return {name: records.from_png(row[name]) for name in ("image", "mask")}

    def finish(self, params: Any, model_state: Any) -> Any:
        """Factors of every picture -> records; their mean and scale over the training split join the variables."""
        config, variables = self._config, {"params": params, **model_state}
        prior = build.Model(self._module, variables)
        extract = jax.jit(lambda image: pipeline.raw_factors(pipeline.encode(prior, image), config.prior.grid))
        raw: dict[str, list[Any]] = {}
        for split in ("train", "validation"):
            raw[split] = []
            for batch, valid in ordered_batches(self.source(split), self.example, EXTRACT_BATCH):
                factors = extract(picture_input(jnp.asarray(batch["image"]), config))
                raw[split] += list(
                    zip(*(np.asarray(a)[:valid] for a in (factors.anatomy_BggK, factors.modality_BZ)), strict=True)
                )
        stats = pipeline.factor_statistics(*(np.stack(column) for column in zip(*raw["train"], strict=True)))
        if not config.prior.standardise:
            stats = {name: value * 0 + 1 if name.endswith("scale") else value * 0 for name, value in stats.items()}
        for split, rows in raw.items():
            records.write(self._run.records("factors", split), (_record(a, m, stats) for a, m in rows))
        return {**variables, "factor_stats": stats}

    def pretrained(self) -> tuple[Any, Any] | None:
        return load_pretrained(self._config)


def load_pretrained(config: Config) -> tuple[Any, Any] | None:
    """Parameters and running statistics from the file that config key `prior.weights` names in the place of training.

    Raises:
      ConfigError: it cannot be read, or does not fit the config's sizes.
    """
    if not config.prior.weights:
        return None
    size = picture_size(config)
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
    """Each picture of the batch left-right and up-down at random, with probability 1/2 each, alike in all arguments.

    Args:
      pictures: (B, H, W) or (B, H, W, C).
    """
    for axis, k in zip((1, 2), jax.random.split(key), strict=True):
        turned_B = jax.random.bernoulli(k, 0.5, (len(pictures[0]),))
        pictures = tuple(jax.vmap(jnp.where)(turned_B, jnp.flip(x, axis), x) for x in pictures)
    return pictures


def _record(anatomy: np.ndarray, modality: np.ndarray, stats: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    factors = pipeline.standardise(Factors(anatomy_BggK=anatomy[None], modality_BZ=modality[None]), stats)
    return {"anatomy": factors.anatomy_BggK[0], "modality": factors.modality_BZ[0]}
