"""The networks whose weights can be brought in and taken out, by kind."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from vgjax.config import ConfigError
from vgjax.weights import autoencoders, diffusers, published, torchvision, transformers
from vgjax.weights.convert import Network, Sizes, Tensors, WeightsError, export_tensors, import_tensors, shapes_of
from vgjax.weights.read import load

NETWORKS: dict[str, Network] = {
    "sdnet": published.SDNET,
    "text_disentangler": published.TEXT_DISENTANGLER,
    "hffm": published.HFFM,
    "pixart": diffusers.PIXART,
    "autoencoder_kl": autoencoders.AUTOENCODER_KL,
    "autoencoder_tiny": autoencoders.AUTOENCODER_TINY,
    "bert": transformers.BERT,
    "distilbert": transformers.DISTILBERT,
    "t5": transformers.T5,
    "vgg19": torchvision.VGG19,
    "inception": torchvision.INCEPTION,
    "dinov2": transformers.DINOV2,
}


def from_torch(
    kind: str, tensors: Tensors, config: Mapping[str, Any] | None = None, where: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """A module of the tensors' size, and its variables.

    Args:
      kind: a key of `NETWORKS`.
      config: the config.json of the same weights, for what shapes do not tell (attention heads, say).
      where: the tensors' origin, for messages.

    Raises:
      WeightsError: an unknown kind, or listing every tensor that is missing, unexpected or of another shape.
    """
    network, where = _network(kind), where or f"the {kind} weights"
    named = network.table.renamed(tensors)
    try:
        module, inputs = network.build(Sizes(named, where), config or {})
        shapes = shapes_of(module, inputs)
    except ConfigError:
        raise
    except Exception as error:  # whatever flax says of shapes and settings that make no network
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{where}: no {kind} is so ({reason}): fetch weights and config.json of one model"
        ) from error
    return module, import_tensors(network.table, named, shapes, where)


def into(module: nn.Module, inputs: tuple[Any, ...], kind: str, source: str, key: str) -> dict[str, Any]:
    """Variables for a module whose size is settled already.

    Args:
      module, inputs: ours, and example inputs of its `__call__`.
      kind: a key of `NETWORKS`.
      source: file, folder or hub id.
      key: config key that names the source, for messages.

    Raises:
      ConfigError: the source cannot be read, or listing every tensor that does not fit the module.
    """
    table = _network(kind).table
    try:
        return import_tensors(table, table.renamed(load(source)[0]), shapes_of(module, inputs), f"'{source}'")
    except WeightsError as error:
        raise ConfigError(f"config key '{key}': {error}") from None


def to_torch(kind: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """torch's tensors by name, from {"params": ...} and, where there are any, {"batch_stats": ...}."""
    return export_tensors(_network(kind).table, variables)


def _network(kind: str) -> Network:
    if kind not in NETWORKS:
        raise WeightsError(f"weights of kind '{kind}' are unknown: choose from {', '.join(sorted(NETWORKS))}")
    return NETWORKS[kind]
