"""Compares our networks with stored outputs of the published ones:  python -m vgjax.weights.verify FOLDER.

FOLDER holds any of adain, hffm, text_disentangler and sdnet.safetensors, the last with sdnet_io.safetensors and
sdnet_grad_norms.json. Everything runs in float64, except one float32 pass of stage 1's anatomy encoder. Prints the
largest absolute and relative error of every output, loss and gradient norm; exits 1 if any is above its tolerance, 2 if
the folder cannot be used.
"""

import argparse
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from vgjax import losses
from vgjax.boundary import guarded, leave
from vgjax.models.layers import adain
from vgjax.models.sdnet import PriorOutput
from vgjax.types import CHANNELS
from vgjax.weights.convert import COUNTER, WeightsError
from vgjax.weights.networks import from_torch, to_torch
from vgjax.weights.read import load, read_json

FORWARD = 1e-6  # absolute, of what is stored in float32 or float64
HALF = 1e-3  # absolute, of what is stored in float16
LOSS = 1e-7  # relative
NORM = 1e-5  # relative, of gradients and running statistics
VANISHING = 1e-9  # norms below are compared absolutely
FLOAT32_LOGITS = 1e-4  # absolute
TERM_WEIGHTS = {"reconstruction": 1.0, "kl": 0.01, "dice": 10.0, "regression": 1.0}


class Row(NamedTuple):
    """One comparison."""

    name: str
    absolute: float  # largest error
    relative: float  # the same, as a share of the largest stored entry
    error: float  # the one of the two that counts
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance


def compare(name: str, ours: Any, stored: np.ndarray, tolerance: float, relative: bool = False) -> Row:
    """The largest difference of two arrays of one shape.

    Raises:
      WeightsError: the shapes differ.
    """
    ours, target = np.asarray(ours, np.float64), np.asarray(stored, np.float64)
    if ours.shape != target.shape:
        raise WeightsError(f"{name} has shape {target.shape} where {ours.shape} is computed: check the folder's files")
    absolute = float(np.abs(ours - target).max(initial=0.0))
    scale = float(np.abs(target).max(initial=0.0))
    share = absolute / scale if scale else absolute
    return Row(name, absolute, share, share if relative else absolute, tolerance)


def verify(folder: pathlib.Path) -> Iterator[Row]:
    """All comparisons that the folder's files allow.

    Raises:
      WeightsError: none of the files is there, or one cannot be used.
    """
    parts = {"adain": _adain, "hffm": _hffm, "text_disentangler": _text_disentangler, "sdnet": _sdnet}
    present = [name for name in parts if (folder / f"{name}.safetensors").is_file()]
    if not present:
        raise WeightsError(f"'{folder}' holds none of {', '.join(f'{n}.safetensors' for n in parts)}: name the folder")
    for name in present:
        yield from parts[name](folder)


class Stored(dict[str, np.ndarray]):
    """Arrays of one file by name."""

    def __init__(self, path: pathlib.Path):
        super().__init__(load(path)[0])
        self._path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise WeightsError(f"'{self._path}' lacks {name}: check the folder's files")

    def wide(self, name: str) -> np.ndarray:
        """An array in float64, images channels last."""
        value = self[name].astype(np.float64)
        return value.transpose(0, 2, 3, 1) if value.ndim == 4 else value

    def compare(self, what: str, ours: Any, name: str) -> Row:
        """A forward output against the array of this name, as closely as that one is stored."""
        return compare(what, ours, self.wide(name), HALF if self[name].dtype == np.float16 else FORWARD)


def _load(kind: str, folder: pathlib.Path, prefix: str = "params.") -> tuple[Any, Any, Stored]:
    """Module, float64 variables from the names with the prefix, and the whole file."""
    path = folder / f"{kind}.safetensors"
    io = Stored(path)
    wide = {
        name.removeprefix(prefix): tensor.astype(np.float64)
        for name, tensor in io.items()
        if tensor.dtype.kind == "f" and name.startswith(prefix)
    }
    return *from_torch(kind, wide, where=str(path)), io


def _adain(folder: pathlib.Path) -> Iterator[Row]:
    io = Stored(folder / "adain.safetensors")
    yield compare("adain.out", adain(io.wide("content"), io.wide("style")), io.wide("out"), FORWARD)


def _hffm(folder: pathlib.Path) -> Iterator[Row]:
    module, variables, io = _load("hffm", folder)
    inputs = {name: io.wide(f"io.{name}") for name in CHANNELS}
    keep = dict.fromkeys(CHANNELS, np.ones(len(inputs["anatomy"])))
    yield io.compare("hffm.tokens", module.apply(variables, inputs, keep).tokens_BND, "io.tokens")


def _text_disentangler(folder: pathlib.Path) -> Iterator[Row]:
    module, variables, io = _load("text_disentangler", folder)
    text = io.wide("io.text_embedding")
    outputs = module.apply(variables, text, train=False)
    for name, output in zip(("anatomy", "modality", "reconstruction"), outputs, strict=True):
        yield io.compare(f"text_disentangler.{name}", output, f"io.{name}")
    targets = (io.wide("io.target_anatomy"), io.wide("io.target_modality"))
    terms = {name: term.mean() for name, term in losses.text_terms(outputs, targets, text, "cosine").items()}
    found = {"align": terms["anatomy"] + terms["modality"], "reconstruction": terms["rebuild"]}
    for name, loss in found.items():
        yield compare(f"text_disentangler.loss.{name}", loss, io[f"io.loss.{name}"][0], LOSS, relative=True)


def _sdnet(folder: pathlib.Path) -> Iterator[Row]:
    module, variables, _ = _load("sdnet", folder, prefix="")
    io = Stored(folder / "sdnet_io.safetensors")
    yield from _evaluation_pass(module, variables, io)
    yield from _training_pass(module, variables, io, folder)


def _evaluation_pass(module: nn.Module, variables: Any, io: Stored) -> Iterator[Row]:
    x = io.wide("x")
    output: PriorOutput = jax.device_get(jax.jit(module.apply)(variables, x))
    logits_of = jax.jit(functools.partial(module.apply, method=lambda net, x: net.anatomy_encoder(x, False)))
    found = {
        "anatomy_logits": logits_of(variables, x),
        "segmentation": output.segmentation_BHWS,
        "mu": output.mu_BZ,
        "logvar": output.logvar_BZ,
        "reconstruction": output.reconstruction_BHWC,
    }
    for name, value in found.items():
        yield io.compare(f"eval.{name}", value, f"eval.{name}")
    yield compare("eval.anatomy", output.anatomy_BHWK, io.wide("eval.anatomy"), 0.0)
    narrow = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)
    logits = logits_of(narrow, x.astype(np.float32))
    yield compare("eval.anatomy_logits (float32)", logits, io.wide("eval.anatomy_logits"), FLOAT32_LOGITS)


def _training_pass(module: nn.Module, variables: Any, io: Stored, folder: pathlib.Path) -> Iterator[Row]:
    noise = [io.wide(f"train.{name}") for name in ("gumbel_1", "gumbel_2", "eps_1")]
    x, lesion = io.wide("x"), io["mask"][:, 1].astype(np.float64)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(params: Any) -> tuple[jax.Array, tuple[PriorOutput, Any, dict[str, jax.Array]]]:
        given = {**variables, "params": params}
        output, updates = module.apply(given, x, *noise, method="training_pass", mutable="batch_stats")
        terms = {name: term.mean() for name, term in losses.prior_terms(output, x, lesion).items()}
        terms["total"] = sum(weight * terms[name] for name, weight in TERM_WEIGHTS.items())
        return terms["total"], (output, updates, terms)

    (_, (output, updates, terms)), grads = jax.device_get(jax.jit(total)(variables["params"]))
    for field in ("mu_BZ", "logvar_BZ", "z_BZ", "mu_tilde_BZ", "reconstruction_BHWC"):
        name = f"train.{field.rpartition('_')[0]}"
        yield io.compare(name, getattr(output, field), name)
    for name, map_BHWK in (("anatomy", output.anatomy_BHWK), ("anatomy_tilde", output.anatomy_tilde_BHWK)):
        yield compare(f"train.{name}", map_BHWK.argmax(-1), io[f"train.{name}"], 0.0)
    for name, term in terms.items():
        yield compare(f"train.loss.{name}", term, io[f"train.loss.{name}"][0], LOSS, relative=True)
    norms = read_json(folder / "sdnet_grad_norms.json")
    statistics = norms.pop("batch_stats_after", {})
    yield from _norms("gradient", {"params": grads}, norms)
    yield from _norms("running statistic", updates, {name: values[0] for name, values in statistics.items()})


def _norms(what: str, variables: Any, stored: dict[str, float]) -> Iterator[Row]:
    """L2 norms of all tensors; every stored one must have its counterpart and the other way round."""
    tensors = to_torch("sdnet", variables)
    ours = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    if set(ours) != set(stored):
        raise WeightsError(f"{what} norms are stored or computed only for {sorted(set(ours) ^ set(stored))}")
    for name, tensor in ours.items():
        norm, target = float(np.linalg.norm(tensor)), float(np.ravel(stored[name])[0])
        row = compare(f"{what} of {name}", norm, np.asarray(target), NORM, relative=True)
        if abs(target) < VANISHING:
            row = row._replace(error=row.absolute, tolerance=VANISHING)
        yield row


@guarded
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparisons; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vgjax.weights.verify", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="folder of the stored outputs")
    folder = parser.parse_args(arguments).folder
    failed = count = 0
    print(f"{'':6} {'max abs':>10} {'max rel':>10} {'tolerance':>10}  what")
    with jax.enable_x64(True):
        for row in verify(folder):
            count, failed = count + 1, failed + (not row.passed)
            verdict = "ok" if row.passed else "FAIL"
            print(f"{verdict:6} {row.absolute:10.2e} {row.relative:10.2e} {row.tolerance:10.0e}  {row.name}")
    print(f"{count - failed} of {count} within tolerance")
    return int(failed > 0)


if __name__ == "__main__":
    leave(main())
