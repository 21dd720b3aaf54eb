"""The converter's own promises: strict in both directions, everything wrong named at once, round trips bit-equal."""

import chex
import jax
import numpy as np
import pytest

from tests.parity.random_weights import random_tensors
from vgjax import weights
from vgjax.models.disentangler import TextDisentangler
from vgjax.models.lora import Adapter
from vgjax.models.sdnet import SDNet
from vgjax.weights import WeightsError, adapters
from vgjax.weights.convert import Table, export_tensors, import_tensors

SDNET = SDNet(
    anatomy_factors=3,
    modality_factors=4,
    unet_widths=(2, 3, 4, 5),
    modality_widths=(2, 3, 4, 5),
    modality_hidden_dim=6,
    segmentor_features=4,
    decoder_widths=(5, 4, 3),
)


@pytest.fixture(scope="module")
def sdnet_variables():
    shapes = jax.eval_shape(SDNET.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0)
    return tree.unflatten([draw.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def test_sdnet_round_trip_recovers_sizes_and_values(sdnet_variables):
    tensors = weights.to_torch("sdnet", sdnet_variables)
    assert tensors["m_encoder.fc.weight"].shape == (6, 5 * 2 * 2)
    assert tensors["a_encoder.unet.encoder_block1.0.weight"].shape == (2, 3, 3, 3)
    assert tensors["decoder.decoder.conv4.weight"].shape == (3, 3, 3, 3)
    assert tensors["m_encoder.norm.num_batches_tracked"].dtype == np.int64
    module, variables = weights.from_torch("sdnet", tensors)
    assert module == SDNET
    assert jax.tree.structure(variables) == jax.tree.structure(sdnet_variables)
    jax.tree.map(np.testing.assert_array_equal, variables, sdnet_variables)


def test_everything_that_is_wrong_is_named_at_once(sdnet_variables):
    tensors = weights.to_torch("sdnet", sdnet_variables)
    del tensors["segmentor.conv2.0.bias"], tensors["m_encoder.norm.running_var"]
    tensors["decoder.decoder.conv2.0.weight"] = tensors["decoder.decoder.conv2.0.weight"].transpose(1, 0, 2, 3)
    tensors["decoder.extra"] = np.zeros(3)
    with pytest.raises(WeightsError) as caught:
        weights.from_torch("sdnet", tensors, where="file.pth")
    message = str(caught.value)
    assert message.startswith("file.pth: ")
    for part in (
        "segmentor.conv2.0.bias is missing",
        "m_encoder.norm.running_var is missing",
        "decoder.decoder.conv2.0.weight has shape (5, 4, 3, 3) instead of (4, 5, 3, 3)",
        "decoder.extra is unexpected",
    ):
        assert part in message


def test_tensors_that_tell_the_size_are_asked_for_by_name():
    with pytest.raises(WeightsError, match=r"anatomy_encoder\.3\.bias is missing"):
        weights.from_torch("text_disentangler", {})
    with pytest.raises(WeightsError, match="no tensor matches"):
        weights.from_torch("sdnet", {})
    with pytest.raises(WeightsError, match=r"'nets' are unknown: choose from .*sdnet"):
        weights.from_torch("nets", {})


def test_text_disentangler_and_fusion_module_round_trip():
    shapes = {
        **{f"{side}_encoder.0.weight": (7, 9) for side in ("anatomy", "modality")},
        **{f"{side}_encoder.0.bias": (7,) for side in ("anatomy", "modality")},
        "anatomy_encoder.3.weight": (3, 7),
        "anatomy_encoder.3.bias": (3,),
        "modality_encoder.3.weight": (2, 7),
        "modality_encoder.3.bias": (2,),
        "decoder.0.weight": (7, 5),
        "decoder.0.bias": (7,),
        "decoder.2.weight": (9, 7),
        "decoder.2.bias": (9,),
    }
    tensors = random_tensors(shapes)
    module, variables = weights.from_torch("text_disentangler", tensors)
    assert module == TextDisentangler(anatomy_dim=3, modality_dim=2, hidden_dim=7)
    back = weights.to_torch("text_disentangler", variables)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_half_precision_is_widened_and_float64_stays():
    table, expected = Table(rows=((r"a", r"a"),)), {("params", "a", "bias"): np.zeros(2)}
    for dtype, result in ((np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
        found = import_tensors(table, {"a.bias": np.array([1, 2], dtype)}, expected, "x")
        assert found["params"]["a"]["bias"].dtype == result


def test_stacked_layers_are_split_and_joined_in_order():
    table = Table(rows=((r"blocks/a", r"layers.{layer}.a"),))
    variables = {"params": {"blocks": {"a": {"kernel": np.arange(24.0).reshape(2, 3, 4)}}}}
    tensors = export_tensors(table, variables)
    assert {name: t.shape for name, t in tensors.items()} == {"layers.0.a.weight": (4, 3), "layers.1.a.weight": (4, 3)}
    np.testing.assert_array_equal(tensors["layers.1.a.weight"], np.arange(12.0, 24.0).reshape(3, 4).T)
    expected = {("params", "blocks", "a", "kernel"): variables["params"]["blocks"]["a"]["kernel"]}
    back = import_tensors(table, tensors, expected, "x")
    np.testing.assert_array_equal(back["params"]["blocks"]["a"]["kernel"], expected["params", "blocks", "a", "kernel"])


def test_older_spellings_are_renamed_and_contradictions_refused():
    table = Table(rows=((r"a", r"new"),), renames=((r"^old\.", "new."),), ignored=r"head\..*")
    assert set(table.renamed({"old.bias": np.ones(2), "head.bias": np.ones(1)})) == {"new.bias"}
    assert set(table.renamed({"old.bias": np.ones(2), "new.bias": np.ones(2)})) == {"new.bias"}
    with pytest.raises(WeightsError, match=r"two different tensors are both 'new\.bias'"):
        table.renamed({"old.bias": np.ones(2), "new.bias": np.zeros(2)})


@pytest.mark.parametrize(
    "changes", [{"r": 0}, {"r": "4"}, {"r": None}, {"lora_alpha": "x"}, {"lora_alpha": None}, {"target_modules": "all"}]
)
def test_settings_of_an_adapter_are_read_or_refused(changes):
    settings = adapters.config_of(Adapter(4, 8.0, ("to_q",), True))
    assert adapters.adapter_from_config(settings, "x") == Adapter(4, 8.0, ("to_q",), True)
    with pytest.raises(WeightsError, match="no usable r, lora_alpha and list of target_modules"):
        adapters.adapter_from_config(settings | changes, "x")


def test_an_adapter_comes_back_and_each_tensor_that_is_wrong_is_told():
    kernels = {"proj_out": (4, 6), "blocks": {"attn1": {"to_q": (2, 4, 5)}}, "pos_embed_proj": (2, 2, 3, 4)}
    is_shape = lambda one: isinstance(one, tuple)
    params = jax.tree.map(lambda shape: {"kernel": np.zeros(shape)}, kernels, is_leaf=is_shape)
    tensors = {
        "proj_out.lora_A.default.weight": np.ones((3, 4)),
        "proj_out.lora_B.default.weight": np.ones((6, 3)),
        "pos_embed.proj.lora_A.weight": np.ones((1, 3, 2, 2)),
        "pos_embed.proj.lora_B.weight": np.ones((4, 1, 1, 1)),
        **{f"transformer_blocks.{i}.attn1.to_q.lora_A.weight": np.full((2, 4), i) for i in (0, 1)},
        **{f"transformer_blocks.{i}.attn1.to_q.lora_B.weight": np.ones((5, 2)) for i in (0, 1)},
    }
    found = adapters.adapter_from_torch({f"base_model.model.{name}": one for name, one in tensors.items()}, params)
    assert jax.tree.map(np.shape, found) == {
        "proj_out": {"down": (4, 3), "up": (3, 6)},
        "blocks": {"attn1": {"to_q": {"down": (2, 4, 2), "up": (2, 2, 5)}}},
        "pos_embed_proj": {"down": (2, 2, 3, 1), "up": (1, 4)},
    }
    back = adapters.adapter_to_torch(found, "transformer.")
    chex.assert_trees_all_equal(back, {f"transformer.{n.replace('.default', '')}": one for n, one in tensors.items()})
    missing = {name: one for name, one in tensors.items() if "blocks.1.attn1.to_q.lora_B" not in name}
    wrong = missing | {"other.lora_A.weight": np.ones((2, 4)), "proj_out.lora_B.default.weight": np.ones((5, 3))}
    with pytest.raises(WeightsError) as told:
        adapters.adapter_from_torch(wrong, params, "x")
    for part in (
        "blocks.1.attn1.to_q.lora_B.weight is missing",
        "other.lora_A.weight is unexpected",
        "instead of (6, 3)",
    ):
        assert part in str(told.value)
    assert adapters.adapter_from_torch({}, params) == {}
