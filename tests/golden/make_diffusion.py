"""Makes the goldens of transformer, adapter, sampler and stage-3 training steps.

For developers: needs torch 2.13, diffusers 0.39 or later, peft and transformers beside numpy and safetensors.

    PYTHONPATH=. python tests/golden/make_diffusion.py
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from diffusers.models import embeddings
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.parity.random_weights import random_tensors, save_golden

SIZE = dict(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    cross_attention_dim=24,
    caption_channels=20,
    patch_size=2,
    sample_size=8,
)
# As published; `proj_in` has no match in this transformer.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj", "ff.net.0.proj", "ff.net.2", "proj_out", "linear"]
TARGETS += ["linear_1", "linear_2"]
RANK, ALPHA = 2, 3.0
FACTORS, HIDDEN = 8, 6
TRAINING_STEPS, CLIP = 3, 1.0


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def fill(module: nn.Module, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Gives every parameter its random tensor, in float64; returns the shapes."""
    shapes = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    tensors = {name: torch.from_numpy(a) for name, a in random_tensors(shapes, seed).items()}
    module.double().load_state_dict(tensors, strict=True)
    return shapes


def transformer(**changes) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(**{**SIZE, **changes}).eval()


def forward_goldens() -> None:
    """The transformer at its own size and at another one, with padded tokens; and with micro-conditions."""
    for kind, changes in {
        "pixart_512": {},
        "pixart_1024": dict(sample_size=16, interpolation_scale=2, use_additional_conditions=True),
    }.items():
        model, draw = transformer(**changes), rng(1)
        shapes = fill(model)
        io = {"t": np.array([3.0, 41.0]), "tokens": draw.standard_normal((2, 5, 20)), "mask": np.ones((2, 5))}
        io["mask"][1, 3:] = 0
        for name, (height, width) in {"same": (8, 8), "other": (12, 8)}.items():
            x = draw.standard_normal((2, 4, height, width))
            given = {"resolution": None, "aspect_ratio": None}
            if changes:
                given = {
                    "resolution": torch.tensor([[height * 8.0, width * 8.0]] * 2),
                    "aspect_ratio": torch.tensor([[height / width]] * 2),
                }
            with torch.no_grad():
                out = model(
                    torch.from_numpy(x),
                    encoder_hidden_states=torch.from_numpy(io["tokens"]),
                    timestep=torch.from_numpy(io["t"]),
                    added_cond_kwargs=given,
                    encoder_attention_mask=torch.from_numpy(io["mask"]),
                ).sample
            io |= {f"x_{name}": x, f"out_{name}": out.numpy()}
        save_golden(kind, shapes, io, config={**SIZE, **changes})


def adapted() -> tuple[nn.Module, dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """A transformer with a non-zero adapter, and the shapes of both under their files' names."""
    model = transformer()
    shapes = fill(model)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights="gaussian")
    peft_model = get_peft_model(model, config).double()
    parameters = {n: p for n, p in peft_model.named_parameters() if "lora_" in n}
    lora_shapes = {n.replace(".default", ""): tuple(p.shape) for n, p in parameters.items()}
    tensors = random_tensors(lora_shapes, seed=2)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(torch.from_numpy(tensors[name.replace(".default", "")]))
    return peft_model.eval(), shapes, lora_shapes


def denoise(model: nn.Module, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    given = {"resolution": None, "aspect_ratio": None}
    out = model(x, encoder_hidden_states=tokens, timestep=t, added_cond_kwargs=given).sample
    return out.chunk(2, dim=1)[0]


def adapter_golden() -> None:
    """The adapted transformer, unmerged and merged, and 20 guided DPM-Solver++ steps with it."""
    model, shapes, lora_shapes = adapted()
    draw = rng(3)
    x, t, tokens = draw.standard_normal((2, 4, 8, 8)), np.array([3.0, 41.0]), draw.standard_normal((2, 2, 20))
    io = {"x": x, "t": t, "tokens": tokens}
    wide = {name: torch.from_numpy(a) for name, a in io.items()}
    with torch.no_grad():
        io["out"] = denoise(model, wide["x"], wide["t"], wide["tokens"]).numpy()
        scheduler = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
        scheduler.set_timesteps(20)
        latents, doubled = wide["x"], torch.cat([torch.zeros_like(wide["tokens"]), wide["tokens"]])
        for step in scheduler.timesteps:
            times = torch.full((4,), float(step), dtype=torch.float64)
            # A random network says nothing of the noise, so that 20 steps of it alone would end in thousands.
            noisy = torch.cat([latents] * 2)
            without, told = (noisy + 0.02 * denoise(model, noisy, times, doubled)).chunk(2)
            latents = scheduler.step(without + 4.5 * (told - without), step, latents).prev_sample
        io["sampled"] = latents.numpy()
        model.merge_adapter()
        io["out_merged"] = denoise(model, wide["x"], wide["t"], wide["tokens"]).numpy()
    settings = dict(config=SIZE, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_shapes=lora_shapes)
    save_golden("pixart_lora", shapes, io, **settings)


class Fusion(nn.Module):
    """The published fusion module at a small size."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_a, self.norm_m = nn.LayerNorm(FACTORS, eps=1e-6), nn.LayerNorm(FACTORS, eps=1e-6)
        self.anatomy_proj, self.modality_proj = (
            nn.Sequential(nn.Linear(FACTORS, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, width)) for _ in range(2)
        )
        self.type_embeddings = nn.Parameter(torch.zeros(2, width))

    def forward(self, anatomy: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
        a = self.anatomy_proj(self.norm_a(anatomy)) + self.type_embeddings[0]
        m = self.modality_proj(self.norm_m(modality)) + self.type_embeddings[1]
        return torch.stack([a, m], dim=1)


def training_golden() -> None:
    """Three steps of stage 3: adapter (clipped) and fusion module (not clipped) under AdamW at a constant rate."""
    # diffusers computes the time features in float32 whatever the model's dtype; here they follow float64.
    embeddings.get_timestep_embedding = time_features
    model, shapes, lora_shapes = adapted()
    fusion = Fusion(20)
    fusion_shapes = fill(fusion, seed=4)
    lora = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    trained = {**lora, **{f"hffm.{n}": p for n, p in fusion.named_parameters()}}
    optimiser = torch.optim.AdamW(list(trained.values()), lr=1e-3, weight_decay=1e-2)
    draw = rng(5)
    io = {
        "latents": draw.standard_normal((TRAINING_STEPS, 2, 4, 8, 8)),
        "noise": draw.standard_normal((TRAINING_STEPS, 2, 4, 8, 8)),
        "t": draw.integers(0, 1000, (TRAINING_STEPS, 2)).astype(np.float64),
        "anatomy": draw.standard_normal((TRAINING_STEPS, 2, FACTORS)),
        "modality": draw.standard_normal((TRAINING_STEPS, 2, FACTORS)),
    }
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    losses, norms, clipped = [], [], []
    for step in range(TRAINING_STEPS):
        given = {name: torch.from_numpy(a[step]) for name, a in io.items() if a.ndim > 1 and len(a) == TRAINING_STEPS}
        level = alphas_bar[given["t"].long()][:, None, None, None]
        noisy = level.sqrt() * given["latents"] + (1 - level).sqrt() * given["noise"]
        tokens = fusion(given["anatomy"], given["modality"])
        loss = ((denoise(model, noisy, given["t"], tokens) - given["noise"]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        last = {f"grad.{name}": p.grad.clone().numpy() for name, p in trained.items()}
        losses.append(loss.item())
        norms.append(float(nn.utils.clip_grad_norm_(list(lora.values()), CLIP)))
        clipped.append(float(torch.stack([p.grad.norm() for p in lora.values()]).norm()))
        optimiser.step()
    io |= last | {"loss": np.array(losses), "norm": np.array(norms), "clipped_norm": np.array(clipped)}
    for name, p in trained.items():
        state = optimiser.state[p]
        io[f"m.{name}"], io[f"v.{name}"] = state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()
        io[f"weight.{name}"] = p.detach().numpy()
    settings = dict(config=SIZE, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_shapes=lora_shapes)
    save_golden("stage3_steps", shapes, io, **settings, fusion_shapes=fusion_shapes)


def time_features(timesteps: torch.Tensor, embedding_dim: int, *_, **__) -> torch.Tensor:
    """Cosines, then sines, in float64."""
    half = embedding_dim // 2
    angles = timesteps[:, None].double() * torch.exp(-np.log(10000.0) * torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


if __name__ == "__main__":
    forward_goldens()
    adapter_golden()
    training_golden()
