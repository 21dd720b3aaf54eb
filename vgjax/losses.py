"""Loss terms as pure functions: one value per example wherever the term allows it; weights live in the config."""

import chex
import jax
import jax.numpy as jnp

from vgjax.models.sdnet import PriorOutput


def _mean_per_example(x: chex.Array) -> chex.Array:
    return x.mean(axis=tuple(range(1, x.ndim)))


def l1(prediction: chex.Array, target: chex.Array) -> chex.Array:
    """Mean absolute difference of each example: (B, ...) x 2 -> (B,)."""
    chex.assert_equal_shape([prediction, target])
    return _mean_per_example(jnp.abs(prediction - target))


def mse(prediction: chex.Array, target: chex.Array) -> chex.Array:
    """Mean squared difference of each example: (B, ...) x 2 -> (B,)."""
    chex.assert_equal_shape([prediction, target])
    return _mean_per_example(jnp.square(prediction - target))


def colour(image_BHWC: chex.Array, target_BHWC: chex.Array) -> chex.Array:
    """Squared differences in each channel's mean over space and in its (unbiased) standard deviation, added up.

    (B, H, W, C) x 2 -> (B,), averaged over channels (Med-Art, arXiv 2506.20449).
    """
    chex.assert_equal_shape([image_BHWC, target_BHWC])
    # The floor keeps the gradient finite where a channel is constant.
    spread = lambda x: jnp.sqrt(jnp.maximum(x.var((1, 2), ddof=1), 1e-12))
    means, spreads = zip(*((x.mean((1, 2)), spread(x)) for x in (image_BHWC, target_BHWC)), strict=True)
    return mse(*means) + mse(*spreads)


def kl(mu_BZ: chex.Array, logvar_BZ: chex.Array) -> chex.Array:
    """KL divergence of N(mu, exp(logvar)) from N(0, 1), summed over Z, in nats: (B, Z) x 2 -> (B,)."""
    chex.assert_equal_shape([mu_BZ, logvar_BZ])
    return 0.5 * (jnp.square(mu_BZ) + jnp.exp(logvar_BZ) - 1.0 - logvar_BZ).sum(-1)


def dice(probability: chex.Array, mask: chex.Array, smooth: float = 0.1) -> chex.Array:
    """Soft Dice loss over the whole batch, 1 - (2 |p m| + smooth) / (|p| + |m| + smooth), of (B, H, W) x 2.

    Not a mean of per-example values, hence a scalar. With `smooth`, nothing found where nothing is costs nothing.
    """
    chex.assert_equal_shape([probability, mask])
    overlap = (probability * mask).sum()
    return 1.0 - (2.0 * overlap + smooth) / (probability.sum() + mask.sum() + smooth)


def dice_score(one: chex.Array, other: chex.Array) -> chex.Array:
    """Dice coefficient 2 |a b| / (|a| + |b|) (Dice 1945), (B, H, W) bool x 2 -> (B,); two empty masks agree."""
    chex.assert_equal_shape([one, other])
    both, total = (one & other).sum((1, 2)), one.sum((1, 2)) + other.sum((1, 2))
    return jnp.where(total > 0, 2.0 * both / jnp.maximum(total, 1), 1.0)


def cosine_alignment(prediction_BD: chex.Array, target_BD: chex.Array, epsilon: float = 1e-8) -> chex.Array:
    """1 - cos of the angle between prediction and target: (B, D) x 2 -> (B,), from 0 (same direction) to 2.

    `epsilon` is the least norm divided by.
    """
    chex.assert_equal_shape([prediction_BD, target_BD])
    # Clipping the squared norm, not the norm, keeps the gradient finite at a zero vector.
    squares = [jnp.square(x).sum(-1) for x in (prediction_BD, target_BD)]
    norms = [jnp.sqrt(jnp.maximum(square, epsilon**2)) for square in squares]
    return 1.0 - (prediction_BD * target_BD).sum(-1) / (norms[0] * norms[1])


def prior_terms(output: PriorOutput, image_BHWC: chex.Array, lesion_BHW: chex.Array) -> dict[str, chex.Array]:
    """The unweighted terms of stage 1, all but the perceptual one: each of shape (B,), but dice of shape ().

    The image is in [-1, 1], its lesion mask 0 or 1.
    """
    return {
        "reconstruction": l1(output.reconstruction_BHWC, image_BHWC),
        "kl": kl(output.mu_BZ, output.logvar_BZ),
        "dice": dice(output.segmentation_BHWS[..., 1], lesion_BHW),
        "regression": l1(output.mu_tilde_BZ, jax.lax.stop_gradient(output.z_BZ)),
    }


def text_terms(
    outputs: tuple[chex.Array, chex.Array, chex.Array],
    targets: tuple[chex.Array, chex.Array],
    text_BD: chex.Array,
    alignment: str,
) -> dict[str, chex.Array]:
    """The unweighted terms of stage 2, each of shape (B,): anatomy, modality and rebuild.

    Args:
      outputs: predicted anatomy (B, F) and modality (B, Z) factors, and the text embedding rebuilt from them.
      targets: the image's anatomy and modality factors, (B, ...) and (B, Z), taken as constants.
      text_BD: the text embedding.
      alignment: "cosine", as published, or "scaled": squared error.
    """
    compare = cosine_alignment if alignment == "cosine" else mse
    terms = {"rebuild": mse(outputs[2], text_BD)}
    for name, output, target in zip(("anatomy", "modality"), outputs, targets, strict=False):
        terms[name] = compare(output, jax.lax.stop_gradient(target).reshape(output.shape))
    return terms


def foreign_words(kernel_DW: chex.Array, share_D: chex.Array, text_BD: chex.Array) -> chex.Array:
    """How much of what a linear layer hears of texts are entries that speak of something else, a scalar in [0, 1].

    Args:
      share_D: how far an entry speaks of what the layer is about, in [0, 1].
    """
    heard_D = jnp.square(kernel_DW).sum(1) * jnp.square(text_BD).mean(0)
    return (heard_D * (1 - share_D)).sum() / jnp.maximum(heard_D.sum(), 1e-12)
