"""Weights for parity tests, made anew from names and shapes: the goldens then hold inputs and outputs alone."""

import json
import math
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A float64 tensor for every floating entry of a torch state dict, the same wherever numpy runs.

    Matrices and kernels keep the scale of activations, vectors named weight lie near 1, variances are positive.
    """
    tensors = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.endswith("running_var"):
            tensors[name] = 0.5 + np.abs(draw)
        elif len(shape) == 1:
            tensors[name] = 0.1 * draw + name.endswith("weight")
        else:
            tensors[name] = draw / math.sqrt(max(math.prod(shape[1:]), 1))
    return tensors


def save_golden(kind: str, shapes: Mapping[str, tuple[int, ...]], io: Mapping[str, np.ndarray], **settings) -> None:
    """Writes tests/golden/<kind>.safetensors: inputs and outputs, torch's names and shapes, and settings."""
    metadata = {"shapes": json.dumps({k: list(v) for k, v in shapes.items()}), "settings": json.dumps(settings)}
    save_file({name: np.ascontiguousarray(a) for name, a in io.items()}, GOLDEN / f"{kind}.safetensors", metadata)


def load_golden(kind: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """(weights by torch name, inputs and outputs by name, settings) of a golden."""
    path = GOLDEN / f"{kind}.safetensors"
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
    return random_tensors(shapes), load_file(path), json.loads(metadata["settings"])
