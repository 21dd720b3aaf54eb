"""VGG-19 features up to relu3_1 for the perceptual term (Simonyan & Zisserman 2015; Johnson et al. 2016, eq. 2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from vgjax.config import ConfigError
from vgjax.models.layers import max_pool_2x2

# torchvision's `features` indices of the five convolutions up to relu3_1; a pool stands before 5 and 10.
LAYERS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
POOL_BEFORE = (5, 10)
# ImageNet statistics of RGB in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def load_features(path: str) -> dict[str, Any]:
    """Kernels (3, 3, I, O) and biases by layer, from safetensors with torchvision's names (`features.N.weight`).

    Raises:
      ConfigError: the file is no safetensors file, or a tensor is missing or has another shape.
    """
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"config key 'prior.vgg_path' names {path}, which cannot be read as safetensors ({error})"
        ) from None
    features = {}
    for layer, (inputs, outputs) in LAYERS.items():
        weight, bias = tensors.get(f"features.{layer}.weight"), tensors.get(f"features.{layer}.bias")
        if weight is None or bias is None or weight.shape != (outputs, inputs, 3, 3) or bias.shape != (outputs,):
            raise ConfigError(
                f"config key 'prior.vgg_path' names {path}, whose features.{layer} is missing or not"
                f" ({outputs}, {inputs}, 3, 3): give torchvision's VGG-19 weights"
            )
        kernel = np.asarray(weight, np.float32).transpose(2, 3, 1, 0)
        features[str(layer)] = {"kernel": kernel, "bias": np.asarray(bias, np.float32)}
    return features


def relu3_1(features: dict[str, Any], image_BHWC: jax.Array) -> jax.Array:
    """Features (B, H / 4, W / 4, 256) of pictures in [-1, 1]."""
    x = ((image_BHWC + 1.0) / 2.0 - MEAN[None, None, None]) / STD[None, None, None]
    for layer in LAYERS:
        if layer in POOL_BEFORE:
            x = max_pool_2x2(x)
        weights = features[str(layer)]
        x = jax.lax.conv_general_dilated(
            x, weights["kernel"], (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + weights["bias"][None, None, None])
    return x


def perceptual(features: dict[str, Any], image_BHWC: jax.Array, target_BHWC: jax.Array) -> jax.Array:
    """Mean absolute difference of relu3_1, (B,)."""
    return jnp.abs(relu3_1(features, image_BHWC) - relu3_1(features, target_BHWC)).mean((1, 2, 3))
