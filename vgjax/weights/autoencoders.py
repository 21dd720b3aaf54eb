"""Names and files of the two autoencoders: diffusers' `AutoencoderKL`, and TAESD in both of its spellings."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vgjax.models.autoencoder_kl import AutoencoderKL
from vgjax.models.autoencoder_tiny import AutoencoderTiny, Layer
from vgjax.weights import read
from vgjax.weights.convert import Network, Sizes, Table, WeightsError

_GROUPS = 32
_SCALING_FACTOR = 0.18215  # Stable Diffusion's, and the value where a config.json names none

# More layers than any sequence has.
_MOST_LAYERS = 64
# Places of the convolutions within a block.
_CONVOLUTIONS = (0, 2, 4)


def _refuse_other(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises WeightsError where config.json asks for arithmetic that we do not have."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise WeightsError(
                f"config.json says {key} {config[key]!r}, and only {value!r} is built: use other weights"
            )


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A number of config.json; null stands for the default."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WeightsError(f"config.json says {key} {value!r}, which is no number: fetch it again")
    return value


# ---------------------------------------------------------------- diffusers' AutoencoderKL


def _has_any(sizes: Sizes, *modules: str) -> bool:
    """Whether an optional part is there, be it incomplete."""
    leaves = ("weight", "bias", "group_norm.weight", "to_q.weight", "to_out.0.weight")
    return any(sizes.has(f"{module}.{leaf}") for module in modules for leaf in leaves)


def _autoencoder_kl(sizes: Sizes, config: Mapping[str, Any]) -> tuple[AutoencoderKL, tuple[Any, ...]]:
    _refuse_other(config, {"act_fn": "silu"})
    levels = sizes.count(r"encoder\.down_blocks\.(\d+)\.")
    widths = tuple(sizes(f"encoder.down_blocks.{i}.resnets.0.conv1.bias")[0] for i in range(levels))
    groups = _number(config, "norm_num_groups", _GROUPS)
    scaling_factor = float(_number(config, "scaling_factor", _SCALING_FACTOR))
    if groups != int(groups) or groups < 1 or any(width % groups for width in widths):
        raise WeightsError(
            f"norm_num_groups is {groups}, which does not divide the channels {widths}: keep the weights' own"
            " config.json beside them"
        )
    if not scaling_factor > 0:
        raise WeightsError(f"config.json says scaling_factor {scaling_factor}: give a positive number")
    module = AutoencoderKL(
        widths=widths,
        blocks=sizes.count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        latent_channels=sizes("decoder.conv_in.weight")[1],
        image_channels=sizes("decoder.conv_out.bias")[0],
        groups=int(groups),
        attention=_has_any(sizes, "encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0"),
        quant=_has_any(sizes, "quant_conv"),
        post_quant=_has_any(sizes, "post_quant_conv"),
        scaling_factor=scaling_factor,
        shift_factor=float(_number(config, "shift_factor", 0.0)),
    )
    return module, (jnp.zeros((1, module.factor, module.factor, sizes("encoder.conv_in.weight")[1])),)


_ATTENTION = r"(.*\.mid_block\.attentions\.0)"

AUTOENCODER_KL = Network(
    Table(
        rows=(
            (r"encoder/level_(\d+)_resnet_(\d+)/(\w+)", r"encoder.down_blocks.\1.resnets.\2.\3"),
            (r"encoder/level_(\d+)_sampler", r"encoder.down_blocks.\1.downsamplers.0.conv"),
            (r"decoder/level_(\d+)_resnet_(\d+)/(\w+)", r"decoder.up_blocks.\1.resnets.\2.\3"),
            (r"decoder/level_(\d+)_sampler", r"decoder.up_blocks.\1.upsamplers.0.conv"),
            (r"(encoder|decoder)/middle/resnet_(\d)/(\w+)", r"\1.mid_block.resnets.\2.\3"),
            (r"(encoder|decoder)/middle/attention/to_out", r"\1.mid_block.attentions.0.to_out.0"),
            (r"(encoder|decoder)/middle/attention/(\w+)", r"\1.mid_block.attentions.0.\2"),
            (r"(encoder|decoder)/(\w+)", r"\1.\2"),
            (r"(quant_conv|post_quant_conv)", r"\1"),
        ),
        # Older spellings.
        renames=(
            (rf"^{_ATTENTION}\.([qkv])(uery|ey|alue)\.", r"\1.to_\2."),
            (rf"^{_ATTENTION}\.proj_attn\.", r"\1.to_out.0."),
        ),
    ),
    _autoencoder_kl,
)


def load_kl(source: str | pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config.json of an `AutoencoderKL`.

    Args:
      source: file, folder or hub id of the autoencoder, or folder or hub id of a pipeline with a part "vae".

    Raises:
      WeightsError: nothing there, or damaged.
    """
    return read.load(source, "vae")


# ---------------------------------------------------------------- TAESD


def _layers(sizes: Sizes, part: str) -> tuple[Layer, ...]:
    """The layers with weights of one half; where all tensors of a layer are missing, a convolution that will be missed.

    Raises:
      WeightsError: not one layer.
    """
    found: dict[int, Layer] = {}
    for index in range(_MOST_LAYERS):
        prefix = f"{part}.layers.{index}"
        block = [name for i in _CONVOLUTIONS if sizes.has(name := f"{prefix}.conv.{i}.weight")]
        plain = [name for leaf in ("weight", "bias") if sizes.has(name := f"{prefix}.{leaf}")]
        if block or plain:
            pool = sizes.has(f"{prefix}.pool.0.weight")
            found[index] = Layer(index, sizes((block or plain)[0])[0], bool(block), pool)
    if not found:
        sizes(f"{part}.layers.0.weight")
    last = max(found)
    missing = set(range(last)) - set(found)
    if part == "decoder":
        missing -= {1, *(i for i in missing if _upsamples(found, i, last))}  # 1: the ReLU after the first convolution
    for index in sorted(missing):
        before = max((i for i in found if i < index), default=min(found))
        found[index] = Layer(index, found[before].features, block=False)
    return tuple(found[index] for index in sorted(found))


def _upsamples(found: Mapping[int, Layer], index: int, last: int) -> bool:
    """Whether an empty place of the decoder stands before a middle convolution, be that one missing too."""
    if index + 1 >= last:
        return False
    after = [found[i].block if i in found else None for i in (index + 1, index + 2)]
    return after[0] is False or after == [None, True]


def _autoencoder_tiny(sizes: Sizes, config: Mapping[str, Any]) -> tuple[AutoencoderTiny, tuple[Any, ...]]:
    _refuse_other(config, {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2})
    module = AutoencoderTiny(_layers(sizes, "encoder"), _layers(sizes, "decoder"))
    halves = {"encoder": module.encoder_layers, "decoder": module.decoder_layers}
    complete = all(
        sizes.has(f"{part}.layers.{layer.place}.{'conv.0.' if layer.block else ''}weight")
        for part, layers in halves.items()
        for layer in layers
    )
    ups = sum(not layer.block for layer in module.decoder_layers[1:-1])
    if complete and 2**ups != module.factor:  # what is missing will be named otherwise
        raise WeightsError(
            f"the encoder makes pictures {module.factor} times smaller and the decoder {2**ups} times larger: give"
            " two halves that belong together"
        )
    inputs = sizes("encoder.layers.0.weight")[1]
    return module, (jnp.zeros((1, module.factor, module.factor, inputs)),)


AUTOENCODER_TINY = Network(
    Table(
        rows=(
            (r"(encoder|decoder)/layers_(\d+)/skip", r"\1.layers.\2.skip"),
            (r"(encoder|decoder)/layers_(\d+)/(conv|pool)_(\d)", r"\1.layers.\2.\3.\4"),
            (r"(encoder|decoder)/layers_(\d+)", r"\1.layers.\2"),
        ),
        # The original's own spelling, the two files merged; its decoder counts the squashing of latents as layer 0.
        renames=(
            (r"^encoder\.(\d+)\.", r"encoder.layers.\1."),
            *((rf"^decoder\.{i}\.", f"decoder.layers.{i - 1}.") for i in range(1, _MOST_LAYERS)),
        ),
    ),
    _autoencoder_tiny,
)


def load_tiny(source: str | pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config.json of a TAESD-like autoencoder, for `from_torch("autoencoder_tiny", ...)`.

    Args:
      source: file, folder or hub id in diffusers' layout; or the original's pair NAME_encoder and NAME_decoder
        (.safetensors or .pth): the encoder's file, or a folder that holds one pair.

    Raises:
      WeightsError: nothing there, damaged, or a pair that is not one.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        encoders = sorted(path.glob("*_encoder.safetensors")) or sorted(path.glob("*_encoder.pth"))
        if len(encoders) > 1:
            raise WeightsError(f"'{path}' holds {len(encoders)} files *_encoder: name one of them")
        path = encoders[0] if encoders else path
    if not (path.is_file() and path.stem.endswith("_encoder")):
        return read.load(source)
    decoder = path.with_name(f"{path.stem.removesuffix('encoder')}decoder{path.suffix}")
    if not decoder.is_file():
        raise WeightsError(f"'{path}' has no '{decoder.name}' beside it: an autoencoder needs both files")
    pair = {"encoder": read.load(path)[0], "decoder": read.load(decoder)[0]}
    return {f"{part}.{name}": tensor for part, tensors in pair.items() for name, tensor in tensors.items()}, {}
