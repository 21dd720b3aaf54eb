"""Makes the goldens of the networks that judge pictures: VGG-19 up to relu3_1, and Inception-v3 of 2015-12-05.

Both are put together here from torch's layers, after their papers and the names of the published weights.
For developers: needs torch 2.13 beside numpy and safetensors.

    PYTHONPATH=. python tests/golden/make_features.py
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.parity.random_weights import random_tensors, save_golden

MEAN, STD = (
    torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
# Multiplies the running variances: each ReLU halves a signal's power, so that the input would be lost on its way.
VARIANCE_SCALE = 0.4
# Pixels of the tiles of Inception's pictures; finer noise would average out.
TILE = 12


def fill(model: nn.Module, variance_scale: float = 1.0) -> dict[str, tuple[int, ...]]:
    """Gives every parameter and statistic its random tensor, in float64; returns the shapes."""
    state = model.double().eval().state_dict()
    shapes = {name: tuple(p.shape) for name, p in state.items() if not name.endswith("num_batches_tracked")}
    for name, array in random_tensors(shapes).items():
        scale = variance_scale if name.endswith("running_var") else 1.0
        state[name] = torch.from_numpy(array * scale)
    model.load_state_dict(state, strict=True)
    return shapes


def nhwc(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for features in (64, 64, None, 128, 128, None, 256):
            layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU()] if features else [nn.MaxPool2d(2)]
            channels = features or channels
        self.features = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(((x + 1) / 2 - MEAN) / STD)


class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int | tuple[int, int], **where):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, bias=False, **where)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)))


WIDE, TALL = dict(size=(1, 7), padding=(0, 3)), dict(size=(7, 1), padding=(3, 0))


def average(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(nn.Module):
    def __init__(self, inputs: int, pool: int):
        super().__init__()
        self.branch1x1 = Basic(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Basic(inputs, 48, 1), Basic(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Basic(inputs, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Basic(64, 96, 3, padding=1), Basic(96, 96, 3, padding=1)
        self.branch_pool = Basic(inputs, pool, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fives, threes = self.branch5x5_2(self.branch5x5_1(x)), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat([self.branch1x1(x), fives, self.branch3x3dbl_3(threes), self.branch_pool(average(x))], 1)


class B(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = Basic(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Basic(inputs, 64, 1), Basic(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Basic(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), threes, functional.max_pool2d(x, 3, 2)], 1)


class C(nn.Module):
    def __init__(self, inputs: int, inner: int):
        super().__init__()
        self.branch1x1 = Basic(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Basic(inputs, inner, 1), Basic(inner, inner, **WIDE)
        self.branch7x7_3 = Basic(inner, 192, **TALL)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Basic(inputs, inner, 1), Basic(inner, inner, **TALL)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Basic(inner, inner, **WIDE), Basic(inner, inner, **TALL)
        self.branch7x7dbl_5 = Basic(inner, 192, **WIDE)
        self.branch_pool = Basic(inputs, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sevens = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), sevens, double, self.branch_pool(average(x))], 1)


class D(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Basic(inputs, 192, 1), Basic(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Basic(inputs, 192, 1), Basic(192, 192, **WIDE)
        self.branch7x7x3_3, self.branch7x7x3_4 = Basic(192, 192, **TALL), Basic(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sevens = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), sevens, functional.max_pool2d(x, 3, 2)], 1)


class E(nn.Module):
    def __init__(self, inputs: int, maximum: bool):
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Basic(inputs, 320, 1)
        self.branch3x3_1 = Basic(inputs, 384, 1)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Basic(inputs, 448, 1), Basic(448, 384, 3, padding=1)
        for name in ("branch3x3_2", "branch3x3dbl_3"):
            setattr(self, f"{name}a", Basic(384, 384, (1, 3), padding=(0, 1)))
            setattr(self, f"{name}b", Basic(384, 384, (3, 1), padding=(1, 0)))
        self.branch_pool = Basic(inputs, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        threes, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        outputs = [self.branch1x1(x), self.branch3x3_2a(threes), self.branch3x3_2b(threes)]
        outputs += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else average(x)
        return torch.cat([*outputs, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Basic(3, 32, 3, stride=2), Basic(32, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Basic(32, 64, 3, padding=1), Basic(64, 80, 1)
        self.Conv2d_4a_3x3 = Basic(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = B(288), C(768, 128), C(768, 160)
        self.Mixed_6d, self.Mixed_6e = C(768, 160), C(768, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = D(768), E(1280, maximum=False), E(2048, maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
                print(f"  after {name}: {tuple(x.shape[1:])}, mean {x.mean():.2f}, standard deviation {x.std():.2f}")
        features = x.mean((2, 3))
        return features, self.fc(features)


def pictures(shape: tuple[int, ...], seed: int, tile: int = 1) -> tuple[np.ndarray, torch.Tensor]:
    """Random bytes (B, H, W, C), and the same as tiles of one colour in [0, 1], channels first."""
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    tiles = image.repeat(tile, 1).repeat(tile, 2).astype(np.float64) / 255
    return image, torch.from_numpy(tiles).permute(0, 3, 1, 2)


def vgg_golden() -> None:
    model = VGG()
    shapes = fill(model)
    image, x = pictures((2, 12, 8, 3), 0)
    with torch.no_grad():
        features = model(2 * x - 1)
    print(f"VGG-19: features of standard deviation {features.std():.2f}")
    distance = (features[:1] - features[1:]).abs().mean()
    save_golden("vgg19", shapes, {"image": image, "features": nhwc(features), "distance": distance.numpy()})


def inception_golden() -> None:
    """Pictures large enough for a last grid of 2 x 2, where averages and maxima differ; and a resize both ways."""
    model = Inception()
    shapes = fill(model, VARIANCE_SCALE)
    image, x = pictures((2, 9, 9, 3), 0, TILE)
    print("Inception:")
    with torch.no_grad():
        features, logits = model(2 * x - 1)
    print(f"  features differ by {(features[0] - features[1]).abs().mean():.2f} of {features.std():.2f}")
    tall, y = pictures((1, 600, 7, 1), 1)
    resized = functional.interpolate(y, size=(299, 299), mode="bilinear", align_corners=False)
    io = {"image": image, "features": features.numpy(), "logits": logits.numpy()}
    io |= {"tall": tall, "resized": nhwc(2 * resized - 1)[:, ::13, ::13]}
    save_golden("inception", shapes, io, variance_scale=VARIANCE_SCALE, tile=TILE)


if __name__ == "__main__":
    vgg_golden()
    inception_golden()
