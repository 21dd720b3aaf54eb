"""The network of the data's own domain: a ResNet-18 that learns from the real training pictures what they differ in.

By VICReg (Bardes et al. 2022): two views of a picture are to have features alike, whose entries vary and are not
correlated. Views are cropped, mirrored where the data may be, and hardly recoloured, as colour and texture count here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vgjax import pipeline
from vgjax.config import Config
from vgjax.context import Context
from vgjax.data import records
from vgjax.data.sources import SOURCES
from vgjax.models.layers import BatchNorm, dense
from vgjax.models.resnet import ResNet18
from vgjax.stages.base import Batch, Stage, Terms
from vgjax.train import producer

INTENSITY = "dataset"  # whatever the config says: all rows of a table are compared in one network
EXPANDED = 4  # width of what is compared, in multiples of the features'
AREA, GAIN, OFFSET, NOISE = 0.6, 0.1, 0.05, 0.03  # least side of a crop; largest changes of pictures in [-1, 1]


class Expanded(nn.Module):
    """The network, and on top what is compared in training alone."""

    width: int

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool) -> jax.Array:
        """(B, 8 EXPANDED width)."""
        x_BF = ResNet18(self.width, name="network")(image_BHWC, train)
        features = EXPANDED * x_BF.shape[1]
        for place in range(2):
            x_BF = nn.relu(BatchNorm(name=f"norm{place}")(dense(features, name=f"dense{place}")(x_BF), train))
        return dense(features, name="out")(x_BF)


def views(key: jax.Array, image_BHWC: jax.Array, symmetries: int, least: float = AREA) -> jax.Array:
    """One random view of each picture in [-1, 1].

    Args:
      symmetries: of the data: 2: left-right, 8: quarter turns too, of which mirror images along either axis are used.
      least: side of a crop, as a share.
    """
    keys, (batch, side) = jax.random.split(key, 6), image_BHWC.shape[:2]
    draw = lambda k, shape, low, high: jax.random.uniform(k, (batch, *shape), minval=low, maxval=high)
    zoom_B = 1.0 / draw(keys[0], (), least, 1.0)
    corner_B2 = draw(keys[1], (2,), 0.0, 1.0) * (1.0 - 1.0 / zoom_B)[:, None]
    crop = lambda image, zoom, corner: jax.image.scale_and_translate(
        image, image.shape, (0, 1), jnp.stack([zoom, zoom]), -corner * side * zoom, "linear", antialias=False
    )
    x = jax.vmap(crop)(image_BHWC, zoom_B, corner_B2)
    for axis, turned_B in zip((2, 1), jax.random.bernoulli(keys[2], 0.5, (2, batch)), strict=True):
        if symmetries >= (2 if axis == 2 else 8):
            x = jax.vmap(jnp.where)(turned_B, jnp.flip(x, axis), x)
    x = x * draw(keys[3], (1, 1, 3), 1 - GAIN, 1 + GAIN) + draw(keys[4], (1, 1, 3), -OFFSET, OFFSET)
    return x + NOISE * jax.random.normal(keys[5], x.shape)


def vicreg(one_BF: jax.Array, other_BF: jax.Array) -> Terms:
    """The unweighted terms (Bardes et al. 2022, eq. 1 to 5, with the means of its appendix A)."""
    centred = [x - x.mean(0, keepdims=True) for x in (one_BF, other_BF)]
    covariances = [x.T @ x / (len(x) - 1) for x in centred]
    hinge = lambda c: jax.nn.relu(1.0 - jnp.sqrt(jnp.diag(c) + 1e-4)).mean()
    correlated = lambda c: (jnp.square(c).sum() - jnp.square(jnp.diag(c)).sum()) / len(c)
    return {
        "invariance": jnp.square(one_BF - other_BF).mean(),
        "variance": (hinge(covariances[0]) + hinge(covariances[1])) / 2,
        "covariance": correlated(covariances[0]) + correlated(covariances[1]),
    }


class DomainStage(Stage):
    """Its training, on the real pictures of the training split."""

    name, columns = "domain", ("pictures",)
    weights = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}  # noqa: RUF012

    def __init__(self, context: Context):
        super().__init__(context)
        self._module, self._size = Expanded(context.config.domain.width), context.config.domain.image_size
        source = SOURCES[context.artefact("pictures").manifest["info"]["source"]]
        self._symmetries = getattr(source, "symmetries", 1)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        variables = self._module.init(key, jnp.zeros((2, self._size, self._size, 3)), False)
        return variables.pop("params"), variables

    def _two_views(self, batch: Batch, key: jax.Array) -> jax.Array:
        """Of each picture of a batch, the second ones behind the first."""
        image = pipeline.prior_input(batch["image"], self._size, INTENSITY)
        return jnp.concatenate([views(k, image, self._symmetries) for k in jax.random.split(key)])

    def loss(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array):
        seen, variables = self._two_views(batch, key), {"params": params, **model_state}
        x_BF, moved = self._module.apply(variables, seen, True, mutable=["batch_stats"])
        return vicreg(*jnp.split(x_BF, 2)), moved

    def validate(self, params: Any, model_state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Terms:
        """score (B,): share of the other pictures that are as near to a view as its picture's other view is."""
        variables = {"params": params, **model_state}
        x_BF = jnp.asarray(self._module.apply(variables, self._two_views(batch, key), False))
        one_BF, other_BF = jnp.split(x_BF, 2)
        apart_BB = jnp.square(one_BF[:, None] - other_BF[None]).sum(-1)
        return {"score": (apart_BB <= jnp.diag(apart_BB)[:, None]).mean(1) - 1 / len(apart_BB)}

    def example(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"image": records.from_png(row["image"])}


def forward(config: Config, variables: Any, image_BHWC: jax.Array) -> jax.Array:
    """Features (B, 8 width) of pictures, uint8, by what the training exported."""
    inside = {kind: variables[kind]["network"] for kind in ("params", "batch_stats")}
    x_BHWC = pipeline.prior_input(image_BHWC, config.domain.image_size, INTENSITY)
    return jnp.asarray(ResNet18(config.domain.width).apply(inside, x_BHWC, False))


DOMAIN = producer("domain", DomainStage, ("seed", "domain.*"), ("pictures",))
