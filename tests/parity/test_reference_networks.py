"""The networks of stages 1 and 2 against weights, inputs and outputs of the published system, in float64."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from vgjax import losses
from vgjax.models.disentangler import TextDisentangler
from vgjax.models.layers import adain
from vgjax.models.prior import PriorOutput, SDNet

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(os.environ.get("VGJAX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
GOLDEN = DATA.parent / "golden" / "reference"

TERM_WEIGHTS = {"reconstruction": 1.0, "kl": 0.01, "dice": 10.0, "regression": 1.0}

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files in {GOLDEN}")

# Index of a layer within a torch Sequential -> our name; the same index means different things in different blocks.
BLOCK = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}
UPCONV = {"0": "conv", "1": "norm"}
BOTTLENECK = {"conv1": ("conv1", "norm1"), "conv2": ("conv2", "norm2"), "resconv": ("conv_skip", "norm_skip")}
RUNNING = {"running_mean": "mean", "running_var": "var"}
LAYOUT = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def sdnet_module(torch_module: str) -> tuple[str, ...]:
    """Path of our module for a torch module of the reference SDNet: "segmentor.pred" -> ("segmentor", "pred")."""
    network, *path = torch_module.split(".")
    if network == "a_encoder":
        block, *layer = path[1:]
        if block == "classifier_conv":
            return "anatomy_encoder", block
        if block == "bottleneck":
            return "anatomy_encoder", block, BOTTLENECK[layer[0]][int(layer[1]) - 1]
        return "anatomy_encoder", block, (UPCONV if "upconv" in block else BLOCK)[layer[0]]
    if network == "m_encoder":
        if path[0].startswith("block"):
            return "modality_encoder", ("conv", "norm")[int(path[1])] + path[0].removeprefix("block")
        return "modality_encoder", path[0]
    if network == "segmentor":
        if path[0] == "pred":
            return "segmentor", "pred"
        return "segmentor", "block", ("conv", "norm")[int(path[1])] + path[0].removeprefix("conv")
    return "decoder", path[1]


def text_module(torch_module: str) -> tuple[str, ...]:
    """Path of our module for a torch module of the reference text disentangler."""
    network, index = torch_module.removeprefix("params.").split(".")
    return network, "hidden" if index == "0" else "out"


def variable_path(torch_name: str, module: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
    """Where a torch parameter or running statistic stands in our variables, collection first."""
    torch_module, leaf = torch_name.rsplit(".", 1)
    path = module(torch_module)
    if leaf in RUNNING:
        return "batch_stats", *path, RUNNING[leaf]
    if leaf == "weight":
        leaf = "scale" if path[-1].startswith("norm") else "kernel"
    return "params", *path, leaf


def to_variables(tensors: dict[str, np.ndarray], module: Callable[[str], tuple[str, ...]]) -> dict:
    """torch tensors -> our float64 variable collections: (out, in) -> (in, out), OIHW -> HWIO."""
    flat = {
        variable_path(name, module): tensor.astype(np.float64).transpose(LAYOUT[tensor.ndim])
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    return traverse_util.unflatten_dict(flat)


def nhwc(images: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    return images.transpose(0, 2, 3, 1).astype(dtype)


@pytest.fixture(scope="module")
def io() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "sdnet_io.safetensors")


@pytest.fixture(scope="module")
def variables() -> dict:
    return to_variables(load_file(GOLDEN / "sdnet.safetensors"), sdnet_module)


@pytest.fixture(scope="module")
def sdnet(variables: dict) -> SDNet:
    params = variables["params"]

    def features(network: str, *path: str) -> int:
        return functools.reduce(lambda tree, key: tree[key], path, params[network])["bias"].size

    return SDNet(
        anatomy_factors=features("anatomy_encoder", "classifier_conv"),
        modality_factors=features("modality_encoder", "mu"),
        unet_widths=tuple(features("anatomy_encoder", f"encoder_block{i}", "conv1") for i in range(1, 5)),
        modality_widths=tuple(features("modality_encoder", f"conv{i}") for i in range(1, 5)),
        modality_hidden_dim=features("modality_encoder", "fc"),
        segmentor_features=features("segmentor", "block", "conv1"),
        decoder_widths=tuple(features("decoder", f"conv{i}") for i in range(1, 4)),
    )


def training_pass(sdnet: SDNet, variables: dict, io: dict[str, np.ndarray]) -> tuple[PriorOutput, dict]:
    return sdnet.apply(
        variables,
        nhwc(io["x"]),
        nhwc(io["train.gumbel_1"]),
        nhwc(io["train.gumbel_2"]),
        io["train.eps_1"],
        method="training_pass",
        mutable="batch_stats",
    )


def weighted_terms(output: PriorOutput, io: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    terms = losses.prior_terms(output, nhwc(io["x"]), io["mask"][:, 1].astype(np.float64))
    return {name: term.mean() for name, term in terms.items()}


def assert_norms_match(variables: dict, expected: dict[str, float]) -> None:
    """Compares the L2 norm of every leaf, relative 1e-5, or absolute 1e-9 where it vanishes; none may be left over."""
    flat = traverse_util.flatten_dict(variables)
    found = [np.linalg.norm(flat.pop(variable_path(name, sdnet_module))) for name in expected]
    assert not flat, f"no golden norm for {sorted(flat)}"
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-5, atol=1e-9)


def test_adain_matches_the_reference() -> None:
    golden = load_file(REPOSITORY / "tests" / "golden" / "adain.safetensors")
    with jax.enable_x64(True):
        out = adain(nhwc(golden["content"]), golden["style"].astype(np.float64))
    np.testing.assert_allclose(out, nhwc(golden["out"]), rtol=1e-6, atol=1e-6)


@needs_golden
def test_evaluation_pass_matches_the_reference(sdnet: SDNet, variables: dict, io: dict[str, np.ndarray]) -> None:
    with jax.enable_x64(True):
        output = jax.jit(sdnet.apply)(variables, nhwc(io["x"]))
        logits = jax.jit(functools.partial(sdnet.apply, method="anatomy_logits"))(variables, nhwc(io["x"]))
    np.testing.assert_allclose(logits, nhwc(io["eval.anatomy_logits"]), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(output.anatomy_BHWK, nhwc(io["eval.anatomy"]))
    np.testing.assert_allclose(output.segmentation_BHWS, nhwc(io["eval.segmentation"]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(output.mu_BZ, io["eval.mu"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(output.logvar_BZ, io["eval.logvar"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(output.reconstruction_BHWC, nhwc(io["eval.reconstruction"]), rtol=0, atol=1e-6)


@needs_golden
def test_float32_logits_stay_near_the_reference(sdnet: SDNet, variables: dict, io: dict[str, np.ndarray]) -> None:
    variables_f32 = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)
    forward = jax.jit(functools.partial(sdnet.apply, method="anatomy_logits"))
    logits = forward(variables_f32, nhwc(io["x"], np.float32))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, nhwc(io["eval.anatomy_logits"]), rtol=0, atol=1e-4)


@needs_golden
def test_training_pass_matches_the_reference(sdnet: SDNet, variables: dict, io: dict[str, np.ndarray]) -> None:
    @jax.jit
    def run(variables: dict) -> tuple[PriorOutput, dict, dict]:
        output, updates = training_pass(sdnet, variables, io)
        return output, updates, weighted_terms(output, io)

    with jax.enable_x64(True):
        output, updates, terms = jax.device_get(run(variables))
    np.testing.assert_array_equal(output.anatomy_BHWK.argmax(-1), io["train.anatomy"])
    np.testing.assert_array_equal(output.anatomy_tilde_BHWK.argmax(-1), io["train.anatomy_tilde"])
    for name in ("mu", "logvar", "z", "mu_tilde"):
        np.testing.assert_allclose(getattr(output, f"{name}_BZ"), io[f"train.{name}"], rtol=0, atol=1e-6, err_msg=name)
    # Stored in float16.
    np.testing.assert_allclose(output.reconstruction_BHWC, nhwc(io["train.reconstruction"]), rtol=0, atol=5e-4)
    for name in TERM_WEIGHTS:
        np.testing.assert_allclose(terms[name], io[f"train.loss.{name}"][0], rtol=1e-7, err_msg=name)
    total = sum(weight * terms[name] for name, weight in TERM_WEIGHTS.items())
    np.testing.assert_allclose(total, io["train.loss.total"][0], rtol=1e-7)
    norms = json.loads((GOLDEN / "sdnet_grad_norms.json").read_text())["batch_stats_after"]
    assert_norms_match(updates, {name: norm for name, (norm,) in norms.items()})


@needs_golden
@pytest.mark.slow
def test_gradient_norms_match_the_reference(sdnet: SDNet, variables: dict, io: dict[str, np.ndarray]) -> None:
    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        output, _ = training_pass(sdnet, {**variables, "params": params}, io)
        terms = weighted_terms(output, io)
        return sum(weight * terms[name] for name, weight in TERM_WEIGHTS.items())

    with jax.enable_x64(True):
        grads = jax.device_get(gradient(variables["params"]))
    norms = json.loads((GOLDEN / "sdnet_grad_norms.json").read_text())
    del norms["batch_stats_after"]
    assert_norms_match({"params": grads}, norms)


@needs_golden
def test_text_disentangler_matches_the_reference() -> None:
    golden = load_file(GOLDEN / "text_disentangler.safetensors")
    params = {name: tensor for name, tensor in golden.items() if name.startswith("params.")}
    variables = to_variables(params, text_module)
    io = {name.removeprefix("io."): t.astype(np.float64) for name, t in golden.items() if name.startswith("io.")}
    anatomy_dim = variables["params"]["anatomy_encoder"]["out"]["bias"].size
    modality_dim = variables["params"]["modality_encoder"]["out"]["bias"].size
    hidden_dim = variables["params"]["decoder"]["hidden"]["bias"].size
    model = TextDisentangler(anatomy_dim, modality_dim, hidden_dim)
    with jax.enable_x64(True):
        outputs = model.apply(variables, io["text_embedding"], train=False)
        terms = losses.text_terms(
            outputs, (io["target_anatomy"], io["target_modality"]), io["text_embedding"], "cosine"
        )
        terms = {name: term.mean() for name, term in terms.items()}
    for name, output in zip(("anatomy", "modality", "reconstruction"), outputs, strict=True):
        np.testing.assert_allclose(output, io[name], rtol=0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(terms["anatomy"] + terms["modality"], io["loss.align"][0], rtol=1e-7)
    np.testing.assert_allclose(terms["rebuild"], io["loss.reconstruction"][0], rtol=1e-7)
