"""Names of the networks that judge pictures: VGG-19 as torchvision calls it, Inception-v3 as in FID's port to torch."""

import numpy as np

from vgjax.models.inception import SIDE, InceptionV3
from vgjax.models.vgg import VGG19Features
from vgjax.weights.convert import Network, Table

VGG19 = Network(
    Table(
        rows=(
            (r"conv1_1", "features.0"),
            (r"conv1_2", "features.2"),
            (r"conv2_1", "features.5"),
            (r"conv2_2", "features.7"),
            (r"conv3_1", "features.10"),
        ),
        # Everything after relu3_1.
        ignored=r"features\.(1[2-9]|2\d|3\d)\..*|classifier\..*",
    ),
    lambda sizes, config: (VGG19Features(), (np.zeros((1, 8, 8, 3), np.float32),)),
)


INCEPTION = Network(
    Table(rows=((r"(\w+)/(conv|bn)", r"\1.\2"), (r"(\w+)/(\w+)/(conv|bn)", r"\1.\2.\3"), (r"fc", r"fc"))),
    lambda sizes, config: (InceptionV3(classes=sizes("fc.bias")[0]), (np.zeros((1, SIDE, SIDE, 3), np.float32),)),
)
