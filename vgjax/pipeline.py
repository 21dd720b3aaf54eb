"""READ THIS FIRST: the method in paper order, as pure functions that training, sampling and evaluation all call.

    image ─ visual prior ─┐                       ┌─ sampler ─ image ─ draw → metrics → report
                          ├─ Factors ─ HFFM ─ DiT ┤
    text ─ encoder ─ disentangler ─┘              └─ training loss

In the default the transformer learns from the factors of pictures, and the disentangler draws factors as a picture with
this text (or mask) might have them: two distributions, trained apart (Ramesh et al. 2022). As published, it learns from
what a regression makes of the text.

B batch, H W C image, g coarse grid, K anatomy factors, Z modality factors, F features of a channel, M components,
D width, N tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vgjax import losses
from vgjax.build import Model
from vgjax.diffusion import guidance
from vgjax.diffusion.process import Process
from vgjax.diffusion.samplers import SOLVERS
from vgjax.models import appearance
from vgjax.models.autoencoder import Autoencoder
from vgjax.models.sdnet import PriorOutput
from vgjax.types import Factors, Inputs, Keep, Tokens

# ---------------------------------------------------------------- pixels


def to_unit_range(image_BHWC: jax.Array, intensity: str) -> jax.Array:
    """uint8 pictures -> float32 in [-1, 1].

    Intensity "dataset" keeps absolute brightness (0 -> -1, 255 -> 1); "per_image" stretches each picture's own range to
    exactly [-1, 1], as published.
    """
    x = image_BHWC.astype(jnp.float32)
    if intensity == "dataset":
        return x / 127.5 - 1.0
    low, high = x.min(axis=(1, 2, 3), keepdims=True), x.max(axis=(1, 2, 3), keepdims=True)
    return 2.0 * (x - low) / jnp.maximum(high - low, 1.0) - 1.0


def resized(x_BHWC: jax.Array, size: int) -> jax.Array:
    """Pictures at size x size pixels."""
    return jax.image.resize(x_BHWC, (len(x_BHWC), size, size, x_BHWC.shape[-1]), "linear")


def prior_input(image_BHWC: jax.Array, size: int, intensity: str) -> jax.Array:
    """uint8 pictures -> what stage 1 sees: size x size pixels in [-1, 1]."""
    return resized(to_unit_range(image_BHWC, intensity), size)


def resized_mask(mask_BHW: jax.Array, size: int) -> jax.Array:
    """Lesion masks, 0 or 1, at size x size pixels: a pixel is lesion where half of what it covers is."""
    return (resized(mask_BHW.astype(jnp.float32)[..., None], size)[..., 0] > 0.5).astype(jnp.float32)


# ---------------------------------------------------------------- stage 1: picture -> factors


def restyle(key: jax.Array, image_BHWC: jax.Array) -> jax.Array:
    """Pictures in another imaging style: random gain and offset a channel, blur and grain; geometry is untouched."""
    keys = jax.random.split(key, 5)
    draw = lambda k, shape, low, high: jax.random.uniform(k, (len(image_BHWC), *shape), minval=low, maxval=high)
    x = image_BHWC * draw(keys[0], (1, 1, 3), 0.6, 1.4) + draw(keys[1], (1, 1, 3), -0.3, 0.3)
    share = draw(keys[2], (1, 1, 1), 0.0, 1.0)
    x = share * x + (1 - share) * appearance.blur(x)
    return x + draw(keys[3], (1, 1, 1), 0.0, 0.2) * jax.random.normal(keys[4], (*x.shape[:3], 1))


def prior_losses(
    module: nn.Module, variables: Any, image_BHWC: jax.Array, lesion_BHW: jax.Array, key: jax.Array
) -> tuple[PriorOutput, dict[str, jax.Array], Any]:
    """The visual prior in training: output, unweighted loss terms but the perceptual one, moved running statistics."""
    (output, extra), moved = module.apply(
        variables, image_BHWC, lesion_BHW, key, restyle, method="noisy_pass", mutable=["batch_stats"]
    )
    return output, losses.prior_terms(output, image_BHWC, lesion_BHW) | extra, moved


def encode(prior: Model, image_BHWC: jax.Array) -> PriorOutput:
    """Everything the visual prior says of pictures in [-1, 1], without noise: the same on every call."""
    return prior(image_BHWC)


def raw_factors(output: PriorOutput, grid: int) -> Factors:
    """Area fractions of the anatomy factors on a grid x grid raster, and mu; not yet standardised."""
    b, height, width, factors = output.structure_BHWF.shape
    cells = output.structure_BHWF.reshape(b, grid, height // grid, grid, width // grid, factors)
    return Factors(anatomy_BggK=cells.mean(axis=(2, 4)), modality_BZ=output.mu_BZ)


def factor_statistics(anatomy: np.ndarray, modality: np.ndarray) -> dict[str, np.ndarray]:
    """Mean of each grid cell and scale of each anatomy factor; mean and scale of each modality factor.

    Of the training pictures' area fractions (n, g, g, K) and modality (n, Z).
    """
    mean, mean_m = anatomy.mean(0), modality.mean(0)
    scale, scale_m = np.sqrt(np.square(anatomy - mean).mean((0, 1, 2))), modality.std(0)
    # A factor that no picture uses has no scale; dividing by a floor keeps it at zero.
    stats = dict(anatomy_mean=mean, anatomy_scale=scale, modality_mean=mean_m, modality_scale=scale_m)
    return {k: (np.maximum(v, 1e-3) if k.endswith("scale") else v).astype(np.float32) for k, v in stats.items()}


def standardise(factors: Factors, stats: Mapping[str, Any]) -> Factors:
    """Brings factors to the dataset's zero mean and unit scale."""
    anatomy = (factors.anatomy_BggK - stats["anatomy_mean"][None]) / stats["anatomy_scale"][None, None, None]
    modality = (factors.modality_BZ - stats["modality_mean"][None]) / stats["modality_scale"][None]
    return Factors(anatomy_BggK=anatomy, modality_BZ=modality)


def image_factors(prior: Model, stats: Mapping[str, Any], image_BHWC: jax.Array) -> Factors:
    """Standardised factors of pictures in [-1, 1]."""
    chex.assert_rank(image_BHWC, 4)
    factors = standardise(raw_factors(encode(prior, image_BHWC), stats["anatomy_mean"].shape[0]), stats)
    chex.assert_shape(factors.anatomy_BggK, (len(image_BHWC), *stats["anatomy_mean"].shape))
    chex.assert_shape(factors.modality_BZ, (len(image_BHWC), *stats["modality_mean"].shape))
    return factors


# ---------------------------------------------------------------- stage 2 as published: text -> factors by regression


def text_factors(disentangler: Model, text_BD: jax.Array, grid: int) -> Factors:
    """Factors that frozen text embeddings imply, on the scale of `image_factors`."""
    chex.assert_rank(text_BD, 2)
    anatomy, modality, _ = disentangler(text_BD, train=False)
    return Factors(anatomy_BggK=anatomy.reshape(len(text_BD), grid, grid, -1), modality_BZ=modality)


# ---------------------------------------------------------------- the space that conditions live in


def principal_components(factors_NF: np.ndarray, components: int) -> dict[str, np.ndarray]:
    """Leading principal directions of one channel's factors, each brought to unit variance.

    Returns:
      mean (F,), whiten (F, M), back (M, F): parts = (x - mean) @ whiten, x ~ mean + parts @ back; M is the lesser of
      `components` and F. Directions in which the factors do not vary are zero.
    """
    mean = factors_NF.mean(0)
    variances, directions = np.linalg.eigh(np.cov(factors_NF - mean, rowvar=False).reshape(mean.size, mean.size))
    order = np.argsort(variances)[::-1][:components]
    variances, directions = variances[order], directions[:, order]
    # Eigenvectors are defined up to sign; fix it, so that reruns agree.
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    scale, varies = np.sqrt(np.maximum(variances, 1e-12)), variances > 1e-6
    basis = {"mean": mean, "whiten": directions / scale * varies, "back": (directions * scale * varies).T}
    return {name: value.astype(np.float32) for name, value in basis.items()}


def by_channel(factors: Factors) -> Inputs:
    """Factors as one vector a channel, (B, F)."""
    return {"anatomy": factors.anatomy_BggK.reshape(len(factors.modality_BZ), -1), "modality": factors.modality_BZ}


def between(ends_2M: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """One channel's components at shares of the way from a first to a second: (2, M), (N,) -> (N, M).

    Spherically (as in Ramesh et al. 2022, section 3.2): whitened, pictures lie at about equal distance from zero, their
    mean, and a straight line would pass nearer to it than any of them.
    """
    (first, last), share = ends_2M, shares[:, None]
    lengths = max(float(np.linalg.norm(first) * np.linalg.norm(last)), 1e-12)
    angle = np.arccos(np.clip(np.vdot(first, last) / lengths, -1.0, 1.0))
    if np.sin(angle) < 1e-3:  # on one line
        return first + share * (last - first)
    return (np.sin((1 - share) * angle) * first + np.sin(share * angle) * last) / np.sin(angle)


def to_components(factors: Factors, basis: Mapping[str, Any]) -> Inputs:
    """Factors in the space of `principal_components`: by channel, (B, M).

    Args:
      basis: of each channel, as anatomy_mean, anatomy_whiten and so on.
    """
    flat = by_channel(factors)
    return {name: (x_BF - basis[f"{name}_mean"][None]) @ basis[f"{name}_whiten"] for name, x_BF in flat.items()}


# ---------------------------------------------------------------- stage 2: text or mask -> the same factors

FACTOR_PROCESS = Process("flow")


def process_errors(
    process: Process,
    output: Callable[[jax.Array, jax.Array], jax.Array],
    x_0: jax.Array,
    time_key: jax.Array,
    noise_key: jax.Array,
) -> jax.Array:
    """Squared error of a network's output, a function of (x_t, t_B), for clean x_0 at random times, (B,)."""
    t, noise = process.draw_time(time_key, len(x_0)), jax.random.normal(noise_key, x_0.shape)
    return errors_at(process, output, x_0, t, noise)


def errors_at(
    process: Process,
    output: Callable[[jax.Array, jax.Array], jax.Array],
    x_0: jax.Array,
    t_B: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """The same at given times and noise, shaped as x_0."""
    return losses.mse(output(process.add_noise(x_0, noise, t_B), t_B), process.target(x_0, noise, t_B))


def mask_coverage(mask_BHW: jax.Array, cells: int) -> jax.Array:
    """How much of each of cells x cells squares a mask (0 or 1) covers, (B, cells * cells) in [0, 1]."""
    x = jax.image.resize(mask_BHW.astype(jnp.float32), (len(mask_BHW), cells, cells), "linear")
    return x.reshape(len(mask_BHW), -1)


def factor_flow_errors(
    flow: Model, parts_BM: jax.Array, given: Mapping[str, jax.Array], keep: Keep, key: jax.Array
) -> jax.Array:
    """Squared error of a factor flow's velocity at random times, (B,) (Lipman et al. 2023, eq. 23)."""
    velocity = lambda x_t, t_B: flow(x_t, FACTOR_PROCESS.network_time(t_B), given, keep)
    return process_errors(FACTOR_PROCESS, velocity, parts_BM, *jax.random.split(key))


def draw_factors(
    flow: Model, given: Mapping[str, jax.Array], keep: Keep, noise_BM: jax.Array, weight: jax.Array, steps: int
) -> jax.Array:
    """Whitened factors (B, M) that follow what is given, by classifier-free guidance against nothing given.

    Args:
      weight: of guidance; 1: none.
    """
    twice = lambda x: jnp.concatenate([x, x])
    kept = {name: jnp.concatenate([k, jnp.zeros_like(k)]) for name, k in keep.items()}

    def velocity(x_BM: jax.Array, t_B: jax.Array) -> jax.Array:
        t = FACTOR_PROCESS.network_time(twice(t_B))
        told, untold = jnp.split(flow(twice(x_BM), t, jax.tree.map(twice, dict(given)), kept), 2)
        return untold + weight * (told - untold)

    return SOLVERS["euler"](FACTOR_PROCESS, velocity, noise_BM, steps)


# ---------------------------------------------------------------- stage 3: condition -> picture


def denoise(dit: Model, process: Process, x_t: jax.Array, t_B: jax.Array, tokens: Tokens) -> jax.Array:
    """The network's output for noisy latents at process times t: what the loss compares and the samplers integrate."""
    # A variance, where the network predicts one, is not used.
    return dit(x_t, process.network_time(t_B), tokens)[..., : x_t.shape[-1]]


def diffusion_errors(
    dit: Model, process: Process, x_0: jax.Array, tokens: Tokens, time_key: jax.Array, noise_key: jax.Array
) -> jax.Array:
    """Squared error of the network's output for clean latents x_0 (B, h, w, c) at random times, (B,)."""
    return process_errors(process, lambda x_t, t_B: denoise(dit, process, x_t, t_B, tokens), x_0, time_key, noise_key)


class Sampling(NamedTuple):
    """How the sampler integrates: process, name in `SOLVERS`, steps, those with gradients, and where it starts."""

    process: Process
    solver: str
    steps: int
    gradient_steps: int | None = None
    start: float = 1.0  # share of the way from pictures, 0, to noise


def generate(
    to_tokens: Callable[[Inputs, Keep], Tokens],
    dit: Model,
    inputs: Inputs,
    noise_BHWC: jax.Array,
    sampling: Sampling,
    guided: guidance.Guidance,
) -> jax.Array:
    """Latents, shaped as the noise, that follow a condition, by guided sampling; `decode` makes pictures of them.

    `to_tokens` takes a condition's inputs, and for each channel which examples keep theirs; `guided` holds the branches
    to evaluate and the (traced) coefficient of each.
    """
    count, process = len(guided.kept), sampling.process
    repeated = jax.tree.map(lambda a: jnp.concatenate([a] * count), inputs)
    tokens = to_tokens(repeated, guidance.keep_masks(guided, len(noise_BHWC)))

    def outputs(x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        branches = denoise(dit, process, jnp.concatenate([x_t] * count), jnp.concatenate([t_B] * count), tokens)
        return guidance.combine(branches, guided.coefficients)

    options = sampling.steps, sampling.gradient_steps, sampling.start
    return SOLVERS[sampling.solver](process, outputs, noise_BHWC, *options)


def decode(autoencoder: Autoencoder, latents_Bhwc: jax.Array) -> jax.Array:
    """Pictures (B, H, W, 3) in [-1, 1] of latents."""
    image = jnp.clip(autoencoder.decode(latents_Bhwc), -1.0, 1.0)
    chex.assert_shape(image, (len(latents_Bhwc), None, None, 3))
    return image
