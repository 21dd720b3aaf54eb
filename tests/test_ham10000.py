"""The published full-size configuration, looked at without its weights: shapes, shardings and cost."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from configs import ham10000
from vgjax import build, optim, parallel
from vgjax.config import Config, ConfigError, from_config_dict
from vgjax.config import Mesh as MeshConfig
from vgjax.context import Context
from vgjax.data.sources import SOURCES
from vgjax.models.autoencoder_kl import AutoencoderKL
from vgjax.stages.denoiser import Denoising
from vgjax.state import create
from vgjax.types import Tokens
from vgjax.weights import to_torch


@pytest.fixture(scope="module")
def config() -> Config:
    c = ham10000.get_config()
    c.data.source = "phantom"  # the dataset's reader is none of this test's business
    return from_config_dict(c)


@pytest.fixture(scope="module")
def frozen(config):
    key = jax.random.key(0)
    text = jax.eval_shape(lambda: build.disentangler(config).init(key, jnp.zeros((1, 768)), False))
    tokens = Tokens(tokens_BND=jnp.zeros((1, 2, 4096)), mask_BN=jnp.ones((1, 2)))
    dit = jax.eval_shape(build.dit(config).init, key, jnp.zeros((1, 64, 64, 4)), jnp.zeros(1), tokens)
    return {"disentangler": text, "basis": {}, "dit": dit["params"]}


def stage_of(config: Config) -> Denoising:
    """The stage's functions, without anything to train on."""
    return Denoising(Context(config, parallel.make_mesh(config.mesh), {}.__getitem__))


def state_shapes(config: Config, frozen):
    functions, tx = stage_of(config), optim.optimizer(config.denoiser.train)

    def born(frozen, key):
        return create(functions.init_params(frozen, key), {}, tx, config.denoiser.train.ema_decay)

    return jax.eval_shape(born, frozen, jax.random.key(0))


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_sizes_are_the_published_ones(config, frozen):
    assert count(frozen["dit"]) == 610_856_096  # PixArt-alpha XL/2 at 512 pixels
    state = state_shapes(config, frozen)
    # Rank 8 on 10 kernels of 28 blocks, and on both ends, the time and the caption embedders.
    block = 8 * 1152 * (8 * 2 + 2 * (1 + 4))
    ends = 8 * ((16 + 1152) + (256 + 1152) + 2 * 1152 + 7 * 1152 + (4096 + 1152) + 2 * 1152 + (1152 + 32))
    assert count(state.params["lora"]) == 28 * block + ends
    hffm = 2 * (2 * 8 + 9 * 256 + 257 * 4096) + 2 * 4096
    assert count(state.params["condition"]) == hffm


def test_large_kernels_are_sharded_over_fsdp_and_tensor(config, frozen):
    mesh = parallel.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    places = traverse_util.flatten_dict(parallel.shardings(frozen["dit"], mesh))
    flat = traverse_util.flatten_dict(frozen["dit"])
    local = sum(math.prod(places[path].shard_shape(leaf.shape)) for path, leaf in flat.items())
    assert local < 0.3 * count(frozen["dit"])


def test_a_step_costs_what_its_matrices_say(config, frozen):
    """Forward, forward again (remat), and the gradient of activations: six operations a weight and token."""
    functions = stage_of(config)
    params = state_shapes(config, frozen).params
    batch = {
        "latents": jax.ShapeDtypeStruct((1, 1, 64, 64, 4), jnp.float16),
        "embedding": jax.ShapeDtypeStruct((1, 768), jnp.float32),
    }

    def loss(params, frozen, batch):
        return functions.errors(params, frozen, batch, jax.random.key(0), train=True).mean()

    cost = jax.jit(jax.value_and_grad(loss)).lower(params, frozen, batch).compile().cost_analysis()
    tokens, block = 32 * 32, count(frozen["dit"]["blocks"]) / config.denoiser.depth  # a scan's body is counted once
    assert 5.5 < cost["flops"] / (tokens * block) < 7.0


def test_without_pretrained_networks_the_config_is_the_default_recipe():
    c = ham10000.get_config("small")
    assert (c.denoiser.weights, c.denoiser.lora.rank, c.autoencoder.kind) == ("", 0, "pixel")
    built = from_config_dict(c)
    with pytest.raises(ConfigError, match=r"data\.root"):
        SOURCES[built.data.source].check(built.data.root)


def save_random(path: pathlib.Path, kind: str, shapes) -> None:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes)
    save_file(to_torch(kind, {"params": params}), path)


@pytest.mark.slow
def test_two_steps_at_full_width(frozen, tmp_path):
    """The command itself, all three stages, with random weights of the published sizes; needs about 20 GB of memory."""
    save_random(tmp_path / "pixart.safetensors", "pixart", frozen["dit"])
    vae = AutoencoderKL(widths=(128, 256, 512, 512), blocks=2, latent_channels=4)
    shapes = jax.eval_shape(lambda: vae.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))["params"]
    assert count(shapes) == 83_653_863  # Stable Diffusion's
    save_random(tmp_path / "vae.safetensors", "autoencoder_kl", shapes)
    changes = {
        "data.source": "phantom",
        "data.train_items": 4,
        "data.validation_items": 1,
        "data.test_items": 1,
        "text_encoder.kind": "hashing",
        "denoiser.weights": tmp_path / "pixart.safetensors",
        "autoencoder.path": tmp_path / "vae.safetensors",
        "prior.train.steps": 1,
        "disentangler.train.steps": 1,
        "disentangler.train.batch_size": 4,
        "denoiser.train.steps": 2,
        "denoiser.train.log_every_steps": 1,
    }
    command = [sys.executable, "-m", "vgjax.main", "--config=configs/ham10000.py", "--mode=train"]
    command += [f"--workdir={tmp_path / 'run'}", *(f"--config.{key}={value}" for key, value in changes.items())]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run(command, check=True, env=environment, cwd=pathlib.Path(__file__).parents[1])
    (folder,) = (path.parent for path in (tmp_path / "store").glob("denoiser-*/manifest.json"))
    done = json.loads((folder / "manifest.json").read_text())["info"]
    print(f"peak memory {done['peak_rss_mb']:.0f} MB, stage 3 {done['wall_s']:.0f} s")
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert done["peak_rss_mb"] < 22_000
