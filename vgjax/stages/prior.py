"""Stage 1: the visual prior learns to take pictures apart into anatomy and modality."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax import losses, pipeline
from vgjax.config import Config, ConfigError
from vgjax.data import records
from vgjax.data.stream import ordered_batches
from vgjax.models import appearance, vgg
from vgjax.stages.stage import Run, Stage, Terms
from vgjax.types import Factors
from vgjax.weights import WeightsError, from_torch, into, load

EXTRACT_BATCH = 64


def make(run: Run) -> Stage:
    """The stage on this run's pictures and masks."""
    config, c = run.config, run.config.prior
    module = pipeline.make_prior(config)
    size = pipeline.prior_size(config)
    features = load_features(c.vgg_path) if c.weight_perceptual else None
    weights = {
        "reconstruction": c.weight_l1,
        "kl": c.weight_kl,
        "dice": c.weight_dice,
        "regression": c.weight_regression,
        "perceptual": c.weight_perceptual,
        "appearance": c.weight_appearance,
        "consistency": c.weight_consistency,
    }

    def init(key: jax.Array) -> tuple[Any, Any]:
        variables = module.init(key, jnp.zeros((2, size, size, 3)))
        return variables.pop("params"), variables

    def loss(params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array):
        image, lesion = pipeline.prior_input(batch["image"], config), pipeline.prior_mask(batch["mask"], config)
        if c.flip:
            image, lesion = mirror(jax.random.fold_in(key, 1), image, lesion)
        run_pass = _reference_pass if c.variant == "reference" else _default_pass
        output, extra, model_state = run_pass(module, {"params": params, **model_state}, image, lesion, key, c)
        terms = losses.prior_terms(output, image, lesion) | extra
        if c.weight_perceptual:
            terms["perceptual"] = vgg.perceptual(frozen, output.reconstruction_BHWC, image)
        return terms, model_state

    def validate(params: Any, model_state: Any, frozen: Any, batch: dict[str, jax.Array]) -> Terms:
        image = pipeline.prior_input(batch["image"], config)
        output = pipeline.Model(module, {"params": params, **model_state})(image)
        lesion, found = pipeline.prior_mask(batch["mask"], config) > 0, output.segmentation_BHWS[..., 1] > 0.5
        overlap = 2.0 * (lesion & found).sum((1, 2)) / jnp.maximum(lesion.sum((1, 2)) + found.sum((1, 2)), 1)
        empty = ~lesion.any((1, 2)) & ~found.any((1, 2))
        dice = jnp.where(empty, 1.0, overlap)
        return {"score": 1.0 - dice, "dice": dice, "reconstruction": losses.l1(output.reconstruction_BHWC, image)}

    return Stage(
        name="prior",
        training=c.train,
        init=init,
        loss=loss,
        weights=weights,
        validate=validate,
        keep_best=c.variant == "reference",
        frozen=features,
        source=lambda split: run.rows(["images"], split, ["image", "mask"]),
        to_example=decode_pixels,
        finish=lambda params, model_state: _finish(run, {"params": params, **model_state}),
        pretrained=load_pretrained(config),
    )


def load_pretrained(config: Config) -> tuple[Any, Any] | None:
    """Parameters and running statistics from the file that config key `prior.weights` names in the place of training.

    Raises:
      ConfigError: it cannot be read, or does not fit the config's sizes.
    """
    if not config.prior.weights:
        return None
    size = pipeline.prior_size(config)
    inputs = (jnp.zeros((1, size, size, 3)),)
    variables = into(pipeline.make_prior(config), inputs, "sdnet", config.prior.weights, "prior.weights")
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


def decode_pixels(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """PNG bytes -> image (H, W, 3) and mask (H, W), uint8."""
    return {"image": records.from_png(row["image"]), "mask": records.from_png(row["mask"])}


def _reference_pass(module: Any, variables: Any, image: jax.Array, lesion: jax.Array, key: jax.Array, c: Any):
    """The published training pass, with noise drawn from `key`."""
    keys = jax.random.split(key, 3)
    shape = (*image.shape[:3], c.anatomy_factors)
    noise = [jax.random.gumbel(keys[0], shape), jax.random.gumbel(keys[1], shape)]
    eps = jax.random.normal(keys[2], (len(image), c.modality_factors))
    output, model_state = module.apply(
        variables, image, *noise, eps, method="training_pass", mutable=["batch_stats"]
    )  # fmt: skip
    return output, {}, model_state


def _default_pass(module: Any, variables: Any, image: jax.Array, lesion: jax.Array, key: jax.Array, c: Any):
    """The default training pass: the map may not depend on imaging style, the vector has to tell it."""
    keys = jax.random.split(key, 3)
    gumbel = jax.random.gumbel(keys[0], (*image.shape[:3], c.anatomy_factors))
    eps = jax.random.normal(keys[1], (len(image), c.modality_factors))
    output, logits = module.apply(
        variables, image, restyle(keys[2], image), gumbel, eps, method="training_pass"
    )  # fmt: skip
    restyled, plain = (jax.nn.softmax(x) for x in logits)
    told = module.apply(variables, output.mu_BZ, method="read_appearance")
    extra = {
        "consistency": jnp.square(plain - restyled).sum(-1).mean((1, 2)),
        "appearance": losses.mse(told, appearance.statistics(image, lesion)),
    }
    return output, extra, {}


def mirror(key: jax.Array, *pictures: jax.Array) -> tuple[jax.Array, ...]:
    """Each picture of the batch left-right and up-down at random, with probability 1/2 each, alike in all arguments.

    Args:
      pictures: (B, H, W) or (B, H, W, C).
    """
    for axis, k in zip((1, 2), jax.random.split(key), strict=True):
        turned_B = jax.random.bernoulli(k, 0.5, (len(pictures[0]),))
        pictures = tuple(jax.vmap(jnp.where)(turned_B, jnp.flip(x, axis), x) for x in pictures)
    return pictures


def restyle(key: jax.Array, image_BHWC: jax.Array) -> jax.Array:
    """Pictures in another imaging style: random gain and offset a channel, blur and grain; geometry is untouched."""
    keys = jax.random.split(key, 5)
    batch = len(image_BHWC)
    draw = lambda k, shape, low, high: jax.random.uniform(k, (batch, *shape), minval=low, maxval=high)
    x = image_BHWC * draw(keys[0], (1, 1, 3), 0.6, 1.4) + draw(keys[1], (1, 1, 3), -0.3, 0.3)
    share = draw(keys[2], (1, 1, 1), 0.0, 1.0)
    x = share * x + (1 - share) * appearance.blur(x)
    grain = draw(keys[3], (1, 1, 1), 0.0, 0.2) * jax.random.normal(keys[4], (*x.shape[:3], 1))
    return x + grain


def _finish(run: Run, variables: Any) -> Any:
    """Factors of every picture -> records; their mean and scale over the training split join the variables."""
    config = run.config
    prior = pipeline.Model(pipeline.make_prior(config), variables)
    extract = jax.jit(lambda image: pipeline.raw_factors(pipeline.encode(prior, image), config.prior.grid))
    raw: dict[str, list[Any]] = {}
    for split in ("train", "validation"):
        source = run.rows(["images"], split, ["image", "mask"])
        raw[split] = []
        for batch, valid in ordered_batches(source, decode_pixels, EXTRACT_BATCH):
            factors = extract(pipeline.prior_input(jnp.asarray(batch["image"]), config))
            raw[split] += list(
                zip(*(np.asarray(a)[:valid] for a in (factors.anatomy_BggK, factors.modality_BZ)), strict=True)
            )
    stats = factor_stats(
        np.stack([a for a, _ in raw["train"]]),
        np.stack([m for _, m in raw["train"]]),
        identity=config.disentangler.alignment == "cosine",
    )
    for split, rows in raw.items():
        records.write(run.records("factors", split), (_record(a, m, stats) for a, m in rows))
    return {**variables, "factor_stats": stats}


def factor_stats(anatomy: np.ndarray, modality: np.ndarray, identity: bool) -> dict[str, np.ndarray]:
    """Mean of each grid cell and scale of each anatomy factor; mean and scale of each modality factor.

    Args:
      anatomy: (n, g, g, K) area fractions.
      modality: (n, Z).
      identity: leave factors as they are, as published.
    """
    mean, mean_m = anatomy.mean(0), modality.mean(0)
    scale, scale_m = np.sqrt(np.square(anatomy - mean).mean((0, 1, 2))), modality.std(0)
    if identity:
        mean, mean_m, scale, scale_m = mean * 0, mean_m * 0, scale * 0 + 1, scale_m * 0 + 1
    # A factor that no picture uses has no scale; dividing by a floor keeps it at zero.
    stats = dict(anatomy_mean=mean, anatomy_scale=scale, modality_mean=mean_m, modality_scale=scale_m)
    return {k: (np.maximum(v, 1e-3) if k.endswith("scale") else v).astype(np.float32) for k, v in stats.items()}


def _record(anatomy: np.ndarray, modality: np.ndarray, stats: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    factors = pipeline.standardise(Factors(anatomy_BggK=anatomy[None], modality_BZ=modality[None]), stats)
    return {"anatomy": factors.anatomy_BggK[0], "modality": factors.modality_BZ[0]}
