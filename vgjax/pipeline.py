"""READ THIS FIRST: the method in paper order, as pure functions that training, sampling and evaluation all call.

    image ─ visual prior ─┐                       ┌─ sampler ─ image ─ evaluation
                          ├─ Factors ─ HFFM ─ DiT ┤
    text ─ encoder ─ disentangler ─┘              └─ training loss

B batch, H W C image, g coarse grid, K anatomy factors, Z modality factors, D width, N tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.config import Config, ConfigError
from vgjax.diffusion import guidance
from vgjax.diffusion.process import Process
from vgjax.diffusion.samplers import SOLVERS
from vgjax.models.appearance import STATISTICS
from vgjax.models.autoencoder import Autoencoder, KLAutoencoder, PixelAutoencoder, TinyAutoencoder
from vgjax.models.disentangler import TextDisentangler
from vgjax.models.dit import DiT
from vgjax.models.hffm import FactorFusion, ReferenceFusion
from vgjax.models.lora import Adapter
from vgjax.models.prior import VisualPrior
from vgjax.models.sdnet import PriorOutput, SDNet
from vgjax.schema import Autoencoder as AutoencoderConfig
from vgjax.types import Factors, Tokens
from vgjax.weights import autoencoders, from_torch


class Model(NamedTuple):
    """A network and its variables, as every function below takes it."""

    module: nn.Module
    variables: Any

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The module applied to the variables."""
        return self.module.apply(self.variables, *inputs, **options)


# ---------------------------------------------------------------- the networks, sized by the config


def make_prior(config: Config) -> VisualPrior | SDNet:
    """Stage 1's network."""
    c = config.prior
    if c.variant == "reference":
        return SDNet(
            anatomy_factors=c.anatomy_factors,
            modality_factors=c.modality_factors,
            unet_widths=c.widths,
            modality_widths=c.modality_widths,
            segmentor_features=c.segmentor_width,
            decoder_widths=c.decoder_widths,
        )
    return VisualPrior(
        widths=c.widths,
        modality_widths=c.modality_widths,
        segmentor_width=c.segmentor_width,
        decoder_widths=c.decoder_widths,
        anatomy_factors=c.anatomy_factors,
        modality_factors=c.modality_factors,
        appearance=STATISTICS,
    )


def anatomy_channels(config: Config) -> int:
    """How many maps leave stage 1 as anatomy: K, and in the default the lesion's."""
    return config.prior.anatomy_factors + (config.prior.variant == "default")


def make_disentangler(config: Config) -> TextDisentangler:
    """Stage 2's network; its anatomy head predicts the whole coarse grid."""
    c = config.prior
    return TextDisentangler(
        anatomy_dim=c.grid * c.grid * anatomy_channels(config),
        modality_dim=c.modality_factors,
        hidden_dim=config.disentangler.hidden,
        dropout_rate=config.disentangler.dropout,
        word_dropout_rate=config.disentangler.word_dropout,
    )


def make_hffm(config: Config) -> FactorFusion | ReferenceFusion:
    """The fusion module of stage 3."""
    c = config.denoiser
    if c.hffm_variant == "reference":
        return ReferenceFusion(hidden=c.hffm_hidden, token_width=c.token_width)
    return FactorFusion(hidden=c.hffm_hidden, token_width=c.token_width, width=c.width, components=c.components)


def make_dit(config: Config) -> DiT:
    """The denoising network of stage 3."""
    c, autoencoder = config.denoiser, config.autoencoder
    return DiT(
        width=c.width,
        depth=c.depth,
        heads=c.heads,
        patch=c.patch,
        mlp_ratio=c.mlp_ratio,
        base_cells=c.position_cells,
        interpolation=c.position_interpolation,
        pixels_per_latent=autoencoder.factor if c.tell_size else 0,
        refine=c.refine,
        remat=c.remat,
        # Unrolled, small stacks run half as long again as fast on CPU; deep ones would compile for minutes.
        unroll=c.depth if c.depth <= 6 else 1,
        out_channels=autoencoder.channels * (1 + c.learn_sigma),
    )


def make_adapter(config: Config) -> Adapter | None:
    """The low-rank adapter that is trained in the place of the transformer, where the config asks for one."""
    c = config.denoiser.lora
    return Adapter(c.rank, c.alpha, c.targets, c.rank_stabilised) if c.rank else None


def load_autoencoder(config: Config) -> Autoencoder:
    """The autoencoder that the config names; its weights are read once a process.

    Raises:
      ConfigError: the weights cannot be used, or their latents are not what the config says.
    """
    c, autoencoder = config.autoencoder, _load_autoencoder(config.autoencoder)
    if (c.channels, c.factor) != (autoencoder.channels, autoencoder.factor):
        raise ConfigError(
            f"config keys 'autoencoder.channels' and 'autoencoder.factor' are {c.channels} and {c.factor}, but the"
            f" weights '{c.path}' have {autoencoder.channels} and {autoencoder.factor}: set them so"
        )
    return autoencoder


@functools.lru_cache(maxsize=2)
def _load_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    if config.kind == "pixel":
        return PixelAutoencoder()
    kinds: dict[str, tuple[Callable[..., Any], Callable[..., Autoencoder]]] = {
        "kl": (autoencoders.load_kl, KLAutoencoder),
        "tiny": (autoencoders.load_tiny, TinyAutoencoder),
    }
    load, wrapper = kinds[config.kind]
    tensors, values = load(config.path)
    module, variables = from_torch(f"autoencoder_{config.kind}", tensors, values, where=config.path)
    if module.image_channels != 3:
        raise ConfigError(
            f"config key 'autoencoder.path' names '{config.path}', made for {module.image_channels} colour channels:"
            " name one made for 3"
        )
    return wrapper(module, variables)


def make_process(config: Config) -> Process:
    """The diffusion process that training and samplers share."""
    c = config.diffusion
    return Process(c.objective, c.timesteps, c.beta_start, c.beta_end)


def latent_shape(config: Config) -> tuple[int, int, int]:
    """Height, width and channels of what the transformer works on."""
    side = config.data.image_size // config.autoencoder.factor
    return side, side, config.autoencoder.channels


# ---------------------------------------------------------------- pixels


def to_unit_range(image_BHWC: jax.Array, intensity: str) -> jax.Array:
    """uint8 pictures -> float32 in [-1, 1].

    Args:
      intensity: "dataset" keeps absolute brightness (0 -> -1, 255 -> 1); "per_image" stretches each picture's own
        range to exactly [-1, 1], as published.
    """
    x = image_BHWC.astype(jnp.float32)
    if intensity == "dataset":
        return x / 127.5 - 1.0
    low, high = x.min(axis=(1, 2, 3), keepdims=True), x.max(axis=(1, 2, 3), keepdims=True)
    return 2.0 * (x - low) / jnp.maximum(high - low, 1.0) - 1.0


def prior_size(config: Config) -> int:
    """Pixels a side at which stage 1 looks at pictures."""
    return config.prior.image_size or config.data.image_size


def prior_input(image_BHWC: jax.Array, config: Config) -> jax.Array:
    """uint8 pictures -> what stage 1 sees: its size, [-1, 1]."""
    x, size = to_unit_range(image_BHWC, config.data.intensity), prior_size(config)
    return x if x.shape[1] == size else jax.image.resize(x, (len(x), size, size, x.shape[-1]), "linear")


def prior_mask(mask_BHW: jax.Array, config: Config) -> jax.Array:
    """Lesion masks, 0 or 1, at stage 1's size: a pixel is lesion where half of what it covers is."""
    x, size = mask_BHW.astype(jnp.float32), prior_size(config)
    if x.shape[1] == size:
        return x
    return (jax.image.resize(x, (len(x), size, size), "linear") > 0.5).astype(jnp.float32)


# ---------------------------------------------------------------- stage 1: picture -> factors


def encode(prior: Model, image_BHWC: jax.Array) -> PriorOutput:
    """Everything the visual prior says of pictures in [-1, 1], without noise: the same on every call."""
    variables = {name: v for name, v in prior.variables.items() if name != "factor_stats"}
    return Model(prior.module, variables)(image_BHWC)


def raw_factors(output: PriorOutput, grid: int) -> Factors:
    """Area fractions of the anatomy factors on a grid x grid raster, and mu; not yet standardised."""
    b, height, width, factors = output.structure_BHWF.shape
    cells = output.structure_BHWF.reshape(b, grid, height // grid, grid, width // grid, factors)
    return Factors(anatomy_BggK=cells.mean(axis=(2, 4)), modality_BZ=output.mu_BZ)


def standardise(factors: Factors, stats: Mapping[str, Any]) -> Factors:
    """Brings factors to the dataset's zero mean and unit scale (stats of ones and zeros leave them as they are)."""
    anatomy = (factors.anatomy_BggK - stats["anatomy_mean"][None]) / stats["anatomy_scale"][None, None, None]
    modality = (factors.modality_BZ - stats["modality_mean"][None]) / stats["modality_scale"][None]
    return Factors(anatomy_BggK=anatomy, modality_BZ=modality)


def image_factors(prior: Model, image_BHWC: jax.Array) -> Factors:
    """Factors of pictures in [-1, 1]."""
    chex.assert_rank(image_BHWC, 4)
    stats = prior.variables["factor_stats"]
    factors = standardise(raw_factors(encode(prior, image_BHWC), stats["anatomy_mean"].shape[0]), stats)
    chex.assert_shape(factors.anatomy_BggK, (len(image_BHWC), *stats["anatomy_mean"].shape))
    chex.assert_shape(factors.modality_BZ, (len(image_BHWC), *stats["modality_mean"].shape))
    return factors


# ---------------------------------------------------------------- stage 2: text -> the same factors


def text_factors(disentangler: Model, text_BD: jax.Array, grid: int) -> Factors:
    """Factors that frozen text embeddings imply, on the scale of `image_factors`."""
    chex.assert_rank(text_BD, 2)
    anatomy, modality, _ = disentangler(text_BD, train=False)
    factors = Factors(anatomy_BggK=anatomy.reshape(len(text_BD), grid, grid, -1), modality_BZ=modality)
    chex.assert_rank(factors.anatomy_BggK, 4)
    return factors


# ---------------------------------------------------------------- stage 3: factors -> condition -> picture


def condition_tokens(
    hffm: Model, factors: Factors, keep: tuple[jax.Array, jax.Array] | None = None, noise_key=None, noise: float = 0.0
) -> Tokens:
    """What the transformer is told.

    Args:
      keep: (anatomy, modality) masks (B,) bool; False replaces that channel by its null. None keeps both.
      noise_key, noise: training only: standard deviation added to the components.
    """
    batch = len(factors.modality_BZ)
    keep = keep or (jnp.ones(batch, bool),) * 2
    tokens = hffm(factors, keep, noise_key, noise)
    chex.assert_shape(tokens.tokens_BND, (batch, 2, None))
    chex.assert_shape(tokens.mask_BN, (batch, 2))
    return tokens


def denoise(dit: Model, process: Process, x_t: jax.Array, t_B: jax.Array, tokens: Tokens) -> jax.Array:
    """The network's output for noisy latents at process times t: what the loss compares and the samplers integrate."""
    output = dit(x_t, process.network_time(t_B), tokens)
    return output[..., : x_t.shape[-1]]  # a variance, where the network predicts one, is not used


def generate(
    hffm: Model,
    dit: Model,
    autoencoder: Autoencoder,
    factors: Factors,
    noise_BHWC: jax.Array,
    config: Config,
) -> jax.Array:
    """Pictures (B, H, W, 3) in [-1, 1] that follow the factors, by guided sampling from `noise_BHWC`."""
    latents = sample_latents(hffm, dit, factors, noise_BHWC, config)
    image = jnp.clip(autoencoder.decode(latents), -1.0, 1.0)
    chex.assert_shape(image, (len(noise_BHWC), None, None, 3))
    return image


def sample_latents(hffm: Model, dit: Model, factors: Factors, noise_BHWC: jax.Array, config: Config) -> jax.Array:
    """Latents, shaped as the noise, that follow the factors."""
    process, settings = make_process(config), config.sample
    terms = guidance.branches(settings.guidance_anatomy, settings.guidance_modality)
    count, batch = len(terms), len(noise_BHWC)
    repeated = jax.tree.map(lambda a: jnp.concatenate([a] * count), factors)
    tokens = condition_tokens(hffm, repeated, guidance.keep_masks(terms, batch))

    def guided(x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        outputs = denoise(dit, process, jnp.concatenate([x_t] * count), jnp.concatenate([t_B] * count), tokens)
        return guidance.combine(outputs, terms)

    return SOLVERS[settings.solver](process, guided, noise_BHWC, settings.steps)
