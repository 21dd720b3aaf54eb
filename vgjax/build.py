"""Config -> networks, autoencoder and diffusion process: the one place where modules get their sizes."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgjax.config import Autoencoder as AutoencoderConfig
from vgjax.config import Config, ConfigError
from vgjax.diffusion.process import Process
from vgjax.models.appearance import STATISTICS
from vgjax.models.autoencoder import Autoencoder, PixelAutoencoder, TrainedAutoencoder
from vgjax.models.disentangler import TextDisentangler
from vgjax.models.dit import DiT
from vgjax.models.factor_flow import FactorFlow
from vgjax.models.lora import Adapter
from vgjax.models.prior import VisualPrior
from vgjax.models.sdnet import SDNet
from vgjax.models.unet import UNet
from vgjax.weights import autoencoders, from_torch


class Model(NamedTuple):
    """A network and its variables, as the functions of the pipeline take it.

    `compute` is the dtype that floating-point variables and inputs are cast to, and outputs come back from as float32;
    None leaves every dtype as it is. All mixed precision passes through here.
    """

    module: nn.Module
    variables: Any
    compute: Any = None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if self.compute is None:
            return self.module.apply(self.variables, *inputs, **options)
        variables, inputs = cast((self.variables, inputs), self.compute)
        return cast(self.module.apply(variables, *inputs, **options), jnp.float32)


def cast(tree: Any, dtype: Any) -> Any:
    """The floating-point arrays of a tree in another precision; everything else as it is."""
    floating = lambda leaf: hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if floating(leaf) else leaf, tree)


def prior(config: Config) -> VisualPrior | SDNet:
    """Stage 1's network: the default's or, in variant reference, the published one."""
    c = config.prior
    same_name = ("modality_widths", "decoder_widths", "anatomy_factors", "modality_factors")
    shared = {name: getattr(c, name) for name in same_name}
    if c.variant == "reference":
        return SDNet(unet_widths=c.widths, segmentor_features=c.segmentor_width, **shared)
    return VisualPrior(widths=c.widths, segmentor_width=c.segmentor_width, appearance=STATISTICS, **shared)


def prior_size(config: Config) -> int:
    """Pixels a side at which stage 1 looks at pictures."""
    return config.prior.image_size or config.data.image_size


def anatomy_shape(config: Config) -> tuple[int, int, int]:
    """Rows and columns of the coarse grid, and how many maps leave stage 1 as anatomy."""
    return config.prior.grid, config.prior.grid, prior(config).structure_channels


def disentangler(config: Config) -> TextDisentangler:
    """Stage 2's network; its anatomy head predicts the whole coarse grid."""
    rows, columns, channels = anatomy_shape(config)
    return TextDisentangler(
        anatomy_dim=rows * columns * channels,
        modality_dim=config.prior.modality_factors,
        hidden_dim=config.disentangler.hidden,
        dropout_rate=config.disentangler.dropout,
        word_dropout_rate=config.disentangler.word_dropout,
    )


def factor_sizes(config: Config) -> dict[str, int]:
    """M of each channel: how many whitened components stand for its factors."""
    features = {"anatomy": math.prod(anatomy_shape(config)), "modality": config.prior.modality_factors}
    return {name: min(config.denoiser.components, count) for name, count in features.items()}


def factor_flows(config: Config) -> dict[str, FactorFlow]:
    """Stage 2's networks, one a channel."""
    c = config.disentangler
    return {name: FactorFlow(size, c.flow_width[name], c.flow_depth) for name, size in factor_sizes(config).items()}


def mask_cells(config: Config) -> int:
    """Cells a side at which the anatomy's flow sees a mask: twice as fine as the anatomy's own grid."""
    return 2 * config.prior.grid


def reader(config: Config) -> UNet:
    """The segmentor that metrics read masks with."""
    return UNet(config.reader.widths)


def dit(config: Config) -> DiT:
    """The denoising network of stage 3."""
    c, coder = config.denoiser, config.autoencoder
    same_name = ("width", "depth", "heads", "patch", "mlp_ratio", "refine", "remat")
    return DiT(
        **{name: getattr(c, name) for name in same_name},
        base_cells=c.position_cells,
        interpolation=c.position_interpolation,
        pixels_per_latent=coder.factor if c.tell_size else 0,
        # Unrolled, small stacks run half as long again as fast on CPU; deep ones would compile for minutes.
        unroll=c.depth if c.depth <= 6 else 1,
        out_channels=coder.channels * (1 + c.learn_sigma),
    )


def adapter(config: Config) -> Adapter | None:
    """The low-rank adapter that is trained in the place of the transformer, where the config asks for one."""
    c = config.denoiser.lora
    return Adapter(c.rank, c.alpha, c.targets, c.rank_stabilised) if c.rank else None


def process(config: Config) -> Process:
    """The diffusion process that training and samplers share."""
    c = config.diffusion
    return Process(c.objective, c.timesteps, c.beta_start, c.beta_end, c.times)


def latent_shape(config: Config) -> tuple[int, int, int]:
    """Height, width and channels of what the transformer works on."""
    side = config.data.image_size // config.autoencoder.factor
    return side, side, config.autoencoder.channels


def autoencoder(config: Config) -> Autoencoder:
    """The autoencoder that the config names; its weights are read once a process.

    Raises:
      ConfigError: the weights cannot be used, or their latents are not what the config says.
    """
    c, coder = config.autoencoder, _load_autoencoder(config.autoencoder)
    if (c.channels, c.factor) != (coder.channels, coder.factor):
        raise ConfigError(
            f"config keys 'autoencoder.channels' and 'autoencoder.factor' are {c.channels} and {c.factor}, but the"
            f" weights '{c.path}' have {coder.channels} and {coder.factor}: set them so"
        )
    return coder


@functools.lru_cache(maxsize=2)
def _load_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    if config.kind == "pixel":
        return PixelAutoencoder()
    load = {"kl": autoencoders.load_kl, "tiny": autoencoders.load_tiny}[config.kind]
    tensors, values = load(config.path)
    module, variables = from_torch(f"autoencoder_{config.kind}", tensors, values, where=config.path)
    if module.image_channels != 3:
        raise ConfigError(
            f"config key 'autoencoder.path' names '{config.path}', made for {module.image_channels} colour channels:"
            " name one made for 3"
        )
    return TrainedAutoencoder(module, variables)
