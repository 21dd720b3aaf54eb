"""Weights trained elsewhere, in and out: `from_torch(kind, tensors)` and `to_torch(kind, variables)`."""

from vgjax.weights.convert import WeightsError
from vgjax.weights.networks import NETWORKS, from_torch, into, to_torch
from vgjax.weights.read import load

__all__ = ["NETWORKS", "WeightsError", "from_torch", "into", "load", "to_torch"]
