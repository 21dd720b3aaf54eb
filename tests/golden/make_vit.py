"""Makes the goldens of DINOv2: transformers' own model with and without registers, at its own size and others.

For developers: needs torch 2.13 and transformers 5.18 beside numpy and safetensors.

    PYTHONPATH=. python tests/golden/make_vit.py
"""

from __future__ import annotations

import re

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from tests.parity.random_weights import random_tensors, save_golden

SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=16, patch_size=4)
# transformers' own names since 5.0 -> those of the hub's files.
NAMES = (
    (r"attention\.(q)_proj", r"attention.attention.query"),
    (r"attention\.(k)_proj", "attention.attention.key"),
    (r"attention\.(v)_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
)
PICTURES = {"same": 16, "larger": 28, "smaller": 12}  # pixels a side


def hub_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def make(kind: str, model: torch.nn.Module, **settings) -> None:
    model = model.double().eval()
    names = {hub_name(name): name for name in model.state_dict()}
    shapes = {hub: tuple(model.state_dict()[name].shape) for hub, name in names.items()}
    model.load_state_dict({names[hub]: torch.from_numpy(a) for hub, a in random_tensors(shapes).items()}, strict=True)
    rng, io = np.random.default_rng(0), {}
    for case, side in PICTURES.items():
        pictures = rng.standard_normal((1, side, side, 3)).astype(np.float32)
        with torch.no_grad():
            found = model(pixel_values=torch.from_numpy(pictures).double().permute(0, 3, 1, 2)).pooler_output
        io |= {f"{case}.pictures": pictures, f"{case}.features": found.numpy()}
        print(f"{kind} {case}: features of standard deviation {found.std():.2f}")
    save_golden(kind, shapes, io, num_attention_heads=3, layer_norm_eps=1e-6, hidden_act="gelu", **settings)


if __name__ == "__main__":
    make("dinov2", Dinov2Model(Dinov2Config(**SIZES, attn_implementation="eager")), model_type="dinov2")
    registers = Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2, attn_implementation="eager")
    make("dinov2_registers", Dinov2WithRegistersModel(registers), model_type="dinov2_with_registers")
