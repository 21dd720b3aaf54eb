"""Transformer, adapter, sampler and stage-3 training steps against diffusers, peft and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import base
from tests.parity.random_weights import load_golden, random_tensors
from vgjax import build, losses, optim, pipeline, weights
from vgjax.config import Training, from_config_dict
from vgjax.diffusion import guidance
from vgjax.diffusion.process import Process
from vgjax.diffusion.samplers import dpmpp_2m
from vgjax.models import lora
from vgjax.models.hffm import CHANNELS
from vgjax.types import Tokens
from vgjax.weights import adapters
from vgjax.weights.diffusers import config_of

PROCESS = Process("epsilon")


def last(x: np.ndarray) -> np.ndarray:
    """Channels last."""
    return np.moveaxis(x, -3, -1)


def narrow(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float32), tree)


def adapter_of(settings: dict, params) -> tuple[lora.Adapter, dict]:
    tensors = random_tensors({name: tuple(shape) for name, shape in settings["lora_shapes"].items()}, seed=2)
    return adapters.adapter_from_config(settings, "settings"), adapters.adapter_from_torch(tensors, params)


@pytest.mark.parametrize("kind", ["pixart_512", "pixart_1024"])
def test_transformer_matches_diffusers(kind):
    tensors, io, settings = load_golden(kind)
    with jax.enable_x64(True):
        module, variables = weights.from_torch("pixart", tensors, settings["config"])
        for size in ("same", "other"):
            tokens = Tokens(tokens_BND=io["tokens"], mask_BN=io["mask"])
            args = last(io[f"x_{size}"]), io["t"], tokens
            out = jax.jit(module.apply)(variables, *args)
            # diffusers computes the time features in float32 whatever the model's dtype.
            np.testing.assert_allclose(out, last(io[f"out_{size}"]), rtol=0, atol=2e-6)
    for size in ("same", "other"):
        args = narrow((last(io[f"x_{size}"]), io["t"], tokens))
        out = jax.jit(module.apply)(narrow(variables), *args)
        np.testing.assert_allclose(out, last(io[f"out_{size}"]), rtol=0, atol=1e-4)


def test_transformer_round_trip_and_config():
    tensors, _, settings = load_golden("pixart_1024")
    module, variables = weights.from_torch("pixart", tensors, settings["config"])
    back = weights.to_torch("pixart", variables)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
    written = config_of(module, back, latent_size=0)
    assert {key: written[key] for key in settings["config"]} == settings["config"]


def test_adapter_matches_peft_unmerged_and_merged():
    tensors, io, settings = load_golden("pixart_lora")
    with jax.enable_x64(True):
        module, variables = weights.from_torch("pixart", tensors, settings["config"])
        adapter, tree = adapter_of(settings, variables["params"])
        args = last(io["x"]), io["t"], Tokens(tokens_BND=io["tokens"], mask_BN=np.ones((2, 2)))
        unmerged = module.apply({**variables, lora.COLLECTION: lora.scaled(tree, adapter.scale)}, *args)
        merged = module.apply({"params": lora.merge(variables["params"], tree, adapter.scale)}, *args)
        plain = module.apply(variables, *args)
        unmerged, merged, plain = (np.asarray(a) for a in (unmerged, merged, plain))
    assert np.abs(plain[..., :4] - last(io["out"])).max() > 0.1
    np.testing.assert_allclose(unmerged[..., :4], last(io["out"]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(merged[..., :4], last(io["out_merged"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["base_model.model.", "transformer."])
def test_adapter_round_trip(prefix):
    tensors, _, settings = load_golden("pixart_lora")
    _, variables = weights.from_torch("pixart", tensors, settings["config"])
    adapter, tree = adapter_of(settings, variables["params"])
    back = adapters.adapter_to_torch(tree, prefix)
    assert {f"{prefix}{name.removeprefix('base_model.model.')}" for name in settings["lora_shapes"]} == set(back)
    again = adapters.adapter_from_torch(back, variables["params"])
    flat = traverse_util.flatten_dict(again)
    for path, leaf in traverse_util.flatten_dict(tree).items():
        np.testing.assert_array_equal(flat[path], leaf)
    assert adapters.adapter_from_config(adapters.config_of(adapter), "config") == adapter


def test_guided_sampling_matches_diffusers():
    """Twenty DPM-Solver++ 2M steps with guidance 4.5 against zero tokens, from the same noise."""
    tensors, io, settings = load_golden("pixart_lora")
    module, variables = weights.from_torch("pixart", tensors, settings["config"])
    adapter, tree = adapter_of(settings, variables["params"])
    dit = build.Model(module, narrow({"params": lora.merge(variables["params"], tree, adapter.scale)}))
    weight = dict.fromkeys(CHANNELS, 4.5)
    kept = guidance.branches(weight)
    guidance_of = guidance.Guidance(CHANNELS, kept, jnp.asarray(guidance.coefficients(kept, weight)))
    masks = guidance.keep_masks(guidance_of, 2)
    keep = jnp.stack([masks[name].astype(jnp.float32) for name in CHANNELS], axis=1)[..., None]
    tokens = Tokens(
        tokens_BND=keep * jnp.asarray(np.tile(io["tokens"], (2, 1, 1)), jnp.float32), mask_BN=jnp.ones((4, 2))
    )

    def guided(x, t_B):
        noisy = jnp.concatenate([x] * 2)
        outputs = noisy + 0.02 * pipeline.denoise(dit, PROCESS, noisy, jnp.concatenate([t_B] * 2), tokens)
        return guidance.combine(outputs, guidance_of.coefficients)

    sampled = jax.jit(lambda noise: dpmpp_2m(PROCESS, guided, noise, 20))(narrow(last(io["x"])))
    np.testing.assert_allclose(sampled, last(io["sampled"]), rtol=0, atol=1e-3)


def published_training() -> Training:
    """The published optimiser of stage 3 at the golden's constant rate."""
    c = base.reference(base.get_config())
    c.denoiser.train.update(dict(learning_rate=1e-3, schedule="constant", warmup_steps=0, clip_part="lora"))
    return from_config_dict(c).denoiser.train


def test_three_training_steps_match_torch():
    tensors, io, settings = load_golden("stage3_steps")
    fusion_shapes = {name: tuple(shape) for name, shape in settings["fusion_shapes"].items()}
    with jax.enable_x64(True):
        module, variables = weights.from_torch("pixart", tensors, settings["config"])
        adapter, tree = adapter_of(settings, variables["params"])
        hffm, hffm_variables = weights.from_torch("hffm", random_tensors(fusion_shapes, seed=4))
        training = published_training()
        tx = optim.optimizer(training)

        @jax.jit
        def gradients(params, row):
            def loss(params):
                inputs = {name: row[name] for name in CHANNELS}
                keep = dict.fromkeys(CHANNELS, jnp.ones(len(row["t"]), bool))
                tokens = build.Model(hffm, {"params": params["hffm"]})(inputs, keep)
                adapted = {**variables, lora.COLLECTION: lora.scaled(params["lora"], adapter.scale)}
                latents, noise = (jnp.moveaxis(row[name], 1, -1) for name in ("latents", "noise"))
                x_t = PROCESS.add_noise(latents, noise, row["t"])
                output = pipeline.denoise(build.Model(module, adapted), PROCESS, x_t, row["t"], tokens)
                return losses.mse(output, PROCESS.target(latents, noise, row["t"])).mean()

            return jax.value_and_grad(loss)(params)

        params = {"lora": jax.tree.map(jnp.asarray, tree), "hffm": hffm_variables["params"]}
        state, first = tx.init(params), params
        for step in range(3):
            row = {name: io[name][step] for name in ("latents", "noise", "t", "anatomy", "modality")}
            loss, grads = gradients(params, row)
            norm = optax.tree.norm(grads["lora"])
            np.testing.assert_allclose(loss, io["loss"][step], rtol=1e-9)
            np.testing.assert_allclose(norm, io["norm"][step], rtol=1e-9)
            assert norm > 1, "the golden has to clip"
            clip = optim.clipping(training)
            clipped, _ = clip.update(grads, clip.init(params))
            np.testing.assert_allclose(optax.tree.norm(clipped["lora"]), io["clipped_norm"][step], rtol=1e-6)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        moments = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
        compared = 0
        for name, value in {"grad": grads, "m": moments.mu, "v": moments.nu, "weight": params}.items():
            for key, ours in named(value).items():
                stored = io[f"{name}.{key}"]
                scale = np.abs(stored).max()
                tolerance = 1e-7
                where = np.abs(io[f"grad.{key}"]) > 1e-8 if name == "weight" else np.ones(stored.shape, bool)
                np.testing.assert_allclose(
                    ours[where], stored[where], rtol=0, atol=tolerance * scale, err_msg=f"{name}.{key}"
                )
                compared += 1
        assert compared == sum(key.startswith(("grad.", "m.", "v.", "weight.")) for key in io)
        moved = {key: np.abs(value - named(first)[key]).max() for key, value in named(params).items()}
        assert min(moved.values()) > 1e-4, "every parameter has to move"


def named(tree) -> dict[str, np.ndarray]:
    """Adapter and fusion module under torch's names."""
    fusion = weights.to_torch("hffm", {"params": jax.device_get(tree["hffm"])})
    return adapters.adapter_to_torch(tree["lora"], "base_model.model.") | {f"hffm.{k}": v for k, v in fusion.items()}
