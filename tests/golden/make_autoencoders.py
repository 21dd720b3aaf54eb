"""Makes the goldens of the autoencoders.

For developers: needs torch 2.13 and diffusers 0.39 or later beside numpy and safetensors.

    PYTHONPATH=. python tests/golden/make_autoencoders.py
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from tests.parity.random_weights import random_tensors, save_golden

KL = dict(
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=[8, 16, 16],
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    scaling_factor=0.7,
)
TINY = dict(
    encoder_block_out_channels=[8, 8, 8],
    decoder_block_out_channels=[8, 8, 8],
    num_encoder_blocks=[1, 2, 2],
    num_decoder_blocks=[2, 2, 1],
    latent_channels=4,
)
WIDTHS, LATENT_CHANNELS = (4, 6), 5


def picture(side: int) -> torch.Tensor:
    """A picture (1, 3, side, side) in [-1, 1]."""
    return torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (1, 3, side, side)))


def fill(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Gives every parameter its random tensor, in float64; returns the shapes."""
    shapes = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    tensors = {name: torch.from_numpy(a) for name, a in random_tensors(shapes).items()}
    module.double().eval().load_state_dict(tensors, strict=True)
    return shapes


def kl_golden() -> None:
    model, x = AutoencoderKL(**KL), picture(32)
    shapes = fill(model)
    latents = model.encode(x).latent_dist
    io = {"image": x, "mean": latents.mean, "logvar": latents.logvar, "decoded": model.decode(latents.mean).sample}
    save_golden("autoencoder_kl", shapes, {name: a.numpy() for name, a in io.items()}, config=KL)


def tiny_golden() -> None:
    model, x = AutoencoderTiny(**TINY), picture(32)
    shapes = fill(model)
    latents = model.encode(x).latents
    io = {"image": x, "latents": latents, "decoded": model.decode(latents).sample}
    save_golden("autoencoder_tiny", shapes, {name: a.numpy() for name, a in io.items()}, config=TINY)


class Block(nn.Module):
    """Three convolutions beside a skip; `pool` adds normalised features before."""

    def __init__(self, inputs: int, outputs: int, pool: bool = False):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(inputs, 4 * inputs, 1, bias=False),
                nn.GroupNorm(4, 4 * inputs),
                nn.ReLU(),
                nn.Conv2d(4 * inputs, inputs, 1, bias=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + self.skip(x))


class Halves(nn.Module):
    """The variant with pools and changing widths, which diffusers' class cannot express, under its names."""

    def __init__(self):
        super().__init__()
        fine, coarse = WIDTHS
        encoder = [
            nn.Conv2d(3, fine, 3, padding=1),
            Block(fine, fine),
            nn.Conv2d(fine, coarse, 3, padding=1, stride=2, bias=False),
            Block(coarse, coarse, pool=True),
            Block(coarse, coarse, pool=True),
            nn.Conv2d(coarse, LATENT_CHANNELS, 3, padding=1),
        ]
        decoder = [
            nn.Conv2d(LATENT_CHANNELS, coarse, 3, padding=1),
            nn.ReLU(),
            Block(coarse, coarse, pool=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(coarse, coarse, 3, padding=1, bias=False),
            Block(coarse, fine),
            nn.Conv2d(fine, 3, 3, padding=1),
        ]
        self.encoder = nn.Sequential(OrderedDict(layers=nn.Sequential(*encoder)))
        self.decoder = nn.Sequential(OrderedDict(layers=nn.Sequential(*decoder)))


def pool_golden() -> None:
    model, x = Halves(), picture(16)
    shapes = fill(model)
    latents = model.encoder((x + 1) / 2)
    decoded = model.decoder(torch.tanh(latents / 3) * 3) * 2 - 1
    io = {"image": x, "latents": latents, "decoded": decoded}
    save_golden("autoencoder_tiny_pool", shapes, {name: a.numpy() for name, a in io.items()})


if __name__ == "__main__":
    with torch.no_grad():
        kl_golden()
        tiny_golden()
        pool_golden()
