"""A trained run to files that diffusers and peft read, with an example that samples from them."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vgjax import build, weights
from vgjax.atomic import write_json, write_text
from vgjax.checkpoint import save_tensors
from vgjax.config import Config, ConfigError
from vgjax.context import Run
from vgjax.models import lora
from vgjax.sample import Sampler
from vgjax.types import Request
from vgjax.weights import adapters
from vgjax.weights.diffusers import config_of

EXAMPLE_PROMPTS = 2
EXAMPLE = '''\
"""Samples with diffusers from what vgjax exported:  python example.py TRANSFORMER [VAE]."""
import sys
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, layer_norm, linear
torch.set_grad_enabled(False)
fusion, given = load_file("hffm.safetensors"), load_file("factors.safetensors")
dit = PixArtTransformer2DModel.from_pretrained(sys.argv[1])
LOAD_ADAPTER
def token(channel):
    norm, mlp, x = f"norm_{channel[0]}", f"{channel}_proj", given[channel]
    x = layer_norm(x, x.shape[1:], fusion[f"{norm}.weight"], fusion[f"{norm}.bias"], 1e-6)
    x = gelu(linear(x, fusion[f"{mlp}.0.weight"], fusion[f"{mlp}.0.bias"]))
    return linear(x, fusion[f"{mlp}.2.weight"], fusion[f"{mlp}.2.bias"])
tokens = torch.stack([token("anatomy"), token("modality")], 1) + fusion["type_embeddings"]
tokens, sizes = torch.cat([0 * tokens, tokens]), {name: given.get(name) for name in ("resolution", "aspect_ratio")}
scheduler = DPMSolverMultistepScheduler(beta_start=BETA_START, beta_end=BETA_END, beta_schedule="linear")
scheduler.set_timesteps(STEPS)
x = given["noise"]
for t in scheduler.timesteps:
    without, told = dit(torch.cat([x, x]), tokens, t.expand(len(tokens)), sizes).sample[:, : x.shape[1]].chunk(2)
    x = scheduler.step(without + GUIDANCE * (told - without), t, x).prev_sample
save_file({"latents": x}, "latents.safetensors")
if len(sys.argv) > 2:
    vae = AutoencoderKL.from_pretrained(sys.argv[2])
    for i, image in enumerate(VaeImageProcessor().postprocess(vae.decode(x / vae.config.scaling_factor).sample)):
        image.save(f"{i}.png")
'''


def export(run: Run, prompt: str = "") -> pathlib.Path:
    """Writes workdir/export: the transformer or its adapter, the other trained networks, and an example that samples.

    Returns the folder. Its factors.safetensors holds what the example needs of the prompt (or of the first test
    captions): factors and noise.

    Raises:
      ConfigError: the run computes what the published networks cannot.
    """
    config, folder = run.config, run.workdir / "export"
    check(config)
    variables = run.context.variables("denoiser")
    save_tensors(folder / "hffm.safetensors", weights.to_torch("hffm", {"params": variables["params"]["condition"]}))
    text = run.context.variables("disentangler")
    save_tensors(folder / "text_disentangler.safetensors", weights.to_torch("text_disentangler", text))
    if config.prior.variant == "reference":
        save_tensors(folder / "sdnet.safetensors", weights.to_torch("sdnet", run.context.variables("prior")))
    adapter = build.adapter(config)
    if adapter:
        save_adapter(folder / "lora", variables["params"]["lora"], adapter)
    else:
        save_transformer(folder / "transformer", config, variables["params"]["dit"])
    save_tensors(folder / "factors.safetensors", _example_inputs(run, prompt))
    write_text(folder / "example.py", _example(config, bool(adapter)))
    return folder


def save_adapter(folder: pathlib.Path, adapter_params: Any, adapter: lora.Adapter) -> None:
    """PEFT's layout: adapter_config.json and adapter_model.safetensors."""
    save_tensors(folder / "adapter_model.safetensors", adapters.adapter_to_torch(adapter_params, "base_model.model."))
    write_json(folder / "adapter_config.json", adapters.config_of(adapter))


def save_transformer(folder: pathlib.Path, config: Config, params: Mapping[str, Any]) -> None:
    """diffusers' layout: config.json and diffusion_pytorch_model.safetensors."""
    tensors = weights.to_torch("pixart", {"params": params})
    save_tensors(folder / "diffusion_pytorch_model.safetensors", tensors)
    write_json(folder / "config.json", config_of(build.dit(config), tensors, build.latent_shape(config)[0]))


def check(config: Config) -> None:
    """Raises ConfigError where the config asks for more than diffusers can compute."""
    wanted = {
        "denoiser.condition": "published",
        "denoiser.refine": 0,
        "denoiser.mlp_ratio": 4.0,
        "diffusion.objective": "epsilon",
        "diffusion.timesteps": 1000,
        "prior.grid": 1,
        "sample.guidance.anatomy": config.sample.guidance["modality"],
    }
    flat = config.flat()
    for key, value in wanted.items():
        if flat[key] != value:
            raise ConfigError(
                f"config key '{key}' is {flat[key]!r}: diffusers knows the published computation only, so train with"
                f" the variant :reference ({value!r}) to export"
            )


def _example_inputs(run: Run, prompt: str) -> dict[str, np.ndarray]:
    """Factors of texts and the noise to start from, as torch has them (channels first)."""
    texts = [prompt]
    if not prompt:
        rows = run.context.rows(["pictures"], "test")
        texts = [rows[i]["caption"] for i in range(min(EXAMPLE_PROMPTS, len(rows)))]
    requests, seed = [Request(prompt=text) for text in texts], run.config.seed
    inputs = Sampler(run.context).inputs(requests, range(seed, seed + len(texts)))
    height, width, channels = build.latent_shape(run.config)
    noise = np.random.default_rng(run.config.seed).standard_normal((len(texts), channels, height, width))
    arrays: dict[str, np.ndarray] = {name: np.asarray(value) for name, value in inputs.items()} | {"noise": noise}
    if run.config.denoiser.tell_size:  # for both halves of the guided batch
        size = run.config.data.image_size
        arrays |= {"resolution": np.full((2 * len(texts), 2), size), "aspect_ratio": np.ones((2 * len(texts), 1))}
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def _example(config: Config, adapted: bool) -> str:
    load = 'from peft import PeftModel\ndit = PeftModel.from_pretrained(dit, "lora")\n' if adapted else ""
    values = {
        "LOAD_ADAPTER\n": load,
        "BETA_START": config.diffusion.beta_start,
        "BETA_END": config.diffusion.beta_end,
        "STEPS": config.sample.steps,
        "GUIDANCE": config.sample.guidance["modality"],
    }
    text = EXAMPLE
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text
