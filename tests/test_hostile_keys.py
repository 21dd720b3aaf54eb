"""Every config key with values that it cannot have: refused by name, before anything is made."""

import math
from pathlib import Path

import pytest

from configs import phantom
from tests.in_process import PHANTOM, refused
from vgjax import config as configs
from vgjax.config import Config, ConfigError
from vgjax.keys import INT32

FLAT = phantom.get_config("smoke").to_dict()
KEYS = configs.build(Config, FLAT).flat()
EMPTY = {"denoiser.lora.targets", "evaluate.metrics"}  # sequences that may be

# Value -> which keys may have it, by name and default.
VALUES = {
    0: lambda name, default: type(default) in (int, float),
    -1: lambda name, default: name == "mesh.data",
    10**11: lambda name, default: name == "seed" or type(default) is float,
    INT32 - 1: lambda name, default: type(default) in (int, float),
    1 << 64: lambda name, default: type(default) is float,
    10**400: lambda name, default: False,
    0.5: lambda name, default: type(default) is float,
    math.nan: lambda name, default: False,
    -math.inf: lambda name, default: False,
    "": lambda name, default: type(default) is str,
    "x\0\ud800": lambda name, default: type(default) is str,
    (): lambda name, default: name in EMPTY,
    (0,): lambda name, default: False,
    ("x", 1.5): lambda name, default: False,
    None: lambda name, default: False,
    b"x": lambda name, default: False,
    1j: lambda name, default: False,
}


def changed(name: str, value: object) -> Config:
    """The smoke config with one key changed."""
    values = phantom.get_config("smoke").to_dict()
    *groups, last = name.split(".")
    inside = values
    for group in groups:
        inside = inside[group]
    inside[last] = value
    built = configs.build(Config, values)
    for complaint in configs.compatibility.complaints(built.flat()):
        raise ConfigError(complaint)
    return built


@pytest.mark.parametrize("name", KEYS)
def test_values_that_a_key_cannot_have(name):
    for value, may_be in VALUES.items():
        try:
            changed(name, value)
        except ConfigError as error:
            assert "config key '" in str(error) and "\n" not in str(error)
        else:
            assert may_be(name, KEYS[name]), (name, value)


def absurd(default: object) -> str:
    """On the command line, what a key with this default cannot be."""
    kinds = {bool: "maybe", int: "100000000000", float: "nan", tuple: "(0,)"}
    return kinds.get(type(default), "\udcff")


FREE = {name for name, value in KEYS.items() if value == "" and name not in ("denoiser.train.clip_part",)} | {"name"}


@pytest.mark.parametrize("name", sorted(set(KEYS) - FREE - {"seed"}))
def test_absurd_values_on_the_command_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(Path(__file__).parents[1])
    refused(tmp_path, name, PHANTOM, f"--config.{name}={absurd(KEYS[name])}", f"--workdir={tmp_path}/run")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("prior.widths", (12, 8), "'prior.widths' is (12, 8): group norm needs multiples of 8"),
        ("prior.widths", (8, 10), "'prior.widths' is (8, 10): group norm needs multiples of 8"),
        ("prior.segmentor_width", 12, "'prior.segmentor_width' is 12: group norm"),
        ("denoiser.mlp_ratio", 1e-4, "'denoiser.mlp_ratio' is 0.0001: times denoiser.width 32 it must be at least 1"),
        ("denoiser.train.clip_part", "loar", "'denoiser.train.clip_part' is 'loar': choose one of"),
        ("diffusion.beta_end", 1.0, "'diffusion.beta_end' is 1.0: give a number in (0, 1)"),
        ("denoiser.components", 0, "'denoiser.components' is 0: give a positive number"),
        ("data.validation_items", 0, "'data.validation_items' is 0: give a number in (0, 1048576)"),
        ("prior.widths", (), "'prior.widths' is (): give a sequence of int values"),
        ("denoiser.width", 10**11, "'denoiser.width' is 100000000000: give a number below 2147483648"),
        ("disentangler.flow_depth", 200, "'disentangler.flow_depth' is 200: give a number in (0, 200)"),
    ],
)
def test_what_no_network_can_be(key, value, match):
    with pytest.raises(ConfigError) as caught:
        changed(key, value)
    assert match in str(caught.value)
