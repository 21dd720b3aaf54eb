"""Names of the published system's own networks: SDNet, text disentangler, HFFM."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vgjax.models.disentangler import TextDisentangler
from vgjax.models.hffm import ReferenceFusion
from vgjax.models.sdnet import SDNet
from vgjax.types import CHANNELS
from vgjax.weights.convert import Network, Sizes, Table

_UNET = "a_encoder.unet"


def _sdnet(sizes: Sizes, config: Mapping[str, Any]) -> tuple[SDNet, tuple[Any, ...]]:
    levels, blocks = sizes.count(rf"{_UNET}\.encoder_block(\d+)\."), sizes.count(r"m_encoder\.block(\d+)\.")
    modality_widths = tuple(sizes(f"m_encoder.block{i}.0.bias")[0] for i in range(1, blocks + 1))
    module = SDNet(
        anatomy_factors=sizes(f"{_UNET}.classifier_conv.bias")[0],
        modality_factors=sizes("m_encoder.mu.bias")[0],
        unet_widths=tuple(sizes(f"{_UNET}.encoder_block{i}.0.bias")[0] for i in range(1, levels + 1)),
        modality_widths=modality_widths,
        modality_hidden_dim=sizes("m_encoder.fc.bias")[0],
        segmentor_features=sizes("segmentor.conv1.0.bias")[0],
        decoder_widths=tuple(sizes(f"decoder.decoder.conv{i}.0.bias")[0] for i in (1, 2, 3)),
        image_channels=sizes(f"{_UNET}.encoder_block1.0.weight")[1],
        classes=sizes("segmentor.pred.bias")[0],
    )
    # The linear layer after the strided convolutions fits one image size.
    side = math.isqrt(sizes("m_encoder.fc.weight")[1] // modality_widths[-1]) * 2**blocks
    return module, (jnp.zeros((1, side, side, module.image_channels)),)


SDNET = Network(
    Table(
        rows=(
            (r"anatomy_encoder/(encoder|decoder)_block(\d+)/conv1", rf"{_UNET}.\1_block\2.0"),
            (r"anatomy_encoder/(encoder|decoder)_block(\d+)/norm1", rf"{_UNET}.\1_block\2.1"),
            (r"anatomy_encoder/(encoder|decoder)_block(\d+)/conv2", rf"{_UNET}.\1_block\2.3"),
            (r"anatomy_encoder/(encoder|decoder)_block(\d+)/norm2", rf"{_UNET}.\1_block\2.4"),
            (r"anatomy_encoder/decoder_upconv(\d+)/conv", rf"{_UNET}.decoder_upconv\1.0"),
            (r"anatomy_encoder/decoder_upconv(\d+)/norm", rf"{_UNET}.decoder_upconv\1.1"),
            (r"anatomy_encoder/bottleneck/conv(\d)", rf"{_UNET}.bottleneck.conv\1.1"),
            (r"anatomy_encoder/bottleneck/norm(\d)", rf"{_UNET}.bottleneck.conv\1.2"),
            (r"anatomy_encoder/bottleneck/conv_skip", rf"{_UNET}.bottleneck.resconv.1"),
            (r"anatomy_encoder/bottleneck/norm_skip", rf"{_UNET}.bottleneck.resconv.2"),
            (r"anatomy_encoder/classifier_conv", rf"{_UNET}.classifier_conv"),
            (r"modality_encoder/conv(\d+)", r"m_encoder.block\1.0"),
            (r"modality_encoder/norm(\d+)", r"m_encoder.block\1.1"),
            (r"modality_encoder/(fc|norm|mu|logvar)", r"m_encoder.\1"),
            (r"segmentor/block/conv(\d)", r"segmentor.conv\1.0"),
            (r"segmentor/block/norm(\d)", r"segmentor.conv\1.1"),
            (r"segmentor/pred", r"segmentor.pred"),
            (r"decoder/conv([123])", r"decoder.decoder.conv\1.0"),
            (r"decoder/conv4", r"decoder.decoder.conv4"),
        )
    ),
    _sdnet,
)


def _text_disentangler(sizes: Sizes, config: Mapping[str, Any]) -> tuple[TextDisentangler, tuple[Any, ...]]:
    module = TextDisentangler(
        anatomy_dim=sizes("anatomy_encoder.3.bias")[0],
        modality_dim=sizes("modality_encoder.3.bias")[0],
        hidden_dim=sizes("anatomy_encoder.0.bias")[0],
    )
    return module, (jnp.zeros((1, sizes("anatomy_encoder.0.weight")[1])), False)


TEXT_DISENTANGLER = Network(
    Table(
        rows=(
            (r"(anatomy_encoder|modality_encoder|decoder)/hidden", r"\1.0"),
            (r"(anatomy_encoder|modality_encoder)/out", r"\1.3"),
            (r"decoder/out", r"decoder.2"),
        )
    ),
    _text_disentangler,
)


def _hffm(sizes: Sizes, config: Mapping[str, Any]) -> tuple[ReferenceFusion, tuple[Any, ...]]:
    width, hidden = sizes("anatomy_proj.2.weight")
    module = ReferenceFusion(hidden=hidden, token_width=width)
    anatomy, modality = sizes("norm_a.weight")[0], sizes("norm_m.weight")[0]
    keep = dict.fromkeys(CHANNELS, jnp.ones(1, bool))
    return module, ({"anatomy": jnp.zeros((1, anatomy)), "modality": jnp.zeros((1, modality))}, keep)


HFFM = Network(
    Table(rows=((r"norm_(a|m)", r"norm_\1"), (r"(anatomy|modality)_proj_(\d)", r"\1_proj.\2"), (r"", r""))), _hffm
)
