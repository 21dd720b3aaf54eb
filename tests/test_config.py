from __future__ import annotations

import importlib
import pathlib

import pytest

from configs import base, kvasir_seg, phantom
from vgjax import config as configs
from vgjax.config import ConfigError
from vgjax.data.sources import SOURCES

NAMES = sorted(p.stem for p in pathlib.Path("configs").glob("*.py") if p.stem not in ("__init__", "base"))


def load(name: str, variants: str = ""):
    c = importlib.import_module(f"configs.{name}").get_config(variants)
    c.data.root = "somewhere"
    return c


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variants", ["", "smoke", "reference", "reference+smoke"])
def test_every_readable_config_and_variant_is_valid(name, variants):
    built = configs.from_config_dict(load(name, variants))
    assert built.name == name
    assert configs.from_json(built.to_json()) == built


def test_children_keep_the_keys_of_base():
    keys = set(base.get_config().to_dict())
    assert all(set(load(name).to_dict()) == keys for name in NAMES)


def test_smoke_is_smaller_everywhere():
    full, tiny = (configs.from_config_dict(phantom.get_config(v)) for v in ("", "smoke"))
    for stage in ("prior", "disentangler", "denoiser"):
        assert getattr(tiny, stage).train.steps < getattr(full, stage).train.steps / 10
    assert tiny.data.train_items < full.data.train_items


def test_unknown_variant_lists_the_known():
    with pytest.raises(ValueError, match=r"'huge'.*cpu, reference, smoke"):
        kvasir_seg.get_config("huge")


def refused(changes: dict, match: str, make=phantom.get_config):
    c = make()
    with c.unlocked():
        c.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=match):
        configs.from_config_dict(c)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("data.image_size", 33, r"data\.image_size.*divisible by 4"),
        ("data.source", "mri", r"data\.source.*choose one of"),
        ("prior.grid", 3, r"prior\.grid.*divide"),
        ("prior.grid", 16, r"prior\.grid.*patches"),
        ("prior.weight_perceptual", 0.1, r"weight_perceptual.*vgg_path"),
        ("prior.vgg_path", "nowhere.safetensors", r"vgg_path.*not a file"),
        ("denoiser.heads", 3, r"denoiser\.heads"),
        ("denoiser.patch", 5, r"denoiser\.patch"),
        ("denoiser.width", 6, r"multiple of 4"),
        ("denoiser.condition_dropout", 1.0, r"condition_dropout.*\[0, 1\)"),
        ("denoiser.train.steps", 0, r"denoiser\.train\.steps.*positive"),
        ("denoiser.train.learning_rate", -1.0, r"learning_rate.*positive"),
        ("denoiser.train.schedule", "linear", r"schedule.*cosine"),
        ("text_encoder.kind", "bert", r"text_encoder\.path"),
        ("sample.solver", "dpmpp_2m", r"sample\.solver.*euler"),
        ("mesh.fsdp", 0, r"mesh\.fsdp.*positive"),
    ],
)
def test_bad_values_are_refused_by_name(key, value, match):
    changes = {"denoiser.heads": 2} if key == "denoiser.width" else {}
    refused({**changes, key: value}, match)


def test_unknown_key_and_missing_key():
    refused({"denoiser.wdith": 3}, r"unknown config key 'denoiser\.wdith'")
    c = phantom.get_config()
    with c.unlocked():
        del c.data.root
    with pytest.raises(ConfigError, match=r"missing config key 'data\.root'"):
        configs.from_config_dict(c)


def test_wrong_types_are_refused():
    c = phantom.get_config()
    c.denoiser.unlock()
    c = c.to_dict()
    for key, value, match in (("seed", "7", "type int"), ("seed", True, "type int"), ("data", 3, "group of keys")):
        with pytest.raises(ConfigError, match=match):
            configs._build(configs.Config, {**c, key: value}, "")


def test_every_source_can_be_chosen_and_no_other():
    assert sorted(configs.CHOICES["data.source"]) == sorted(SOURCES)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"phantom"}))
def test_datasets_need_a_root(name):
    with pytest.raises(ConfigError, match=r"data\.root' is empty: name .*--config\.data\.root=FOLDER"):
        SOURCES[name].check("")


def test_difference_names_keys():
    a, b = (configs.from_config_dict(phantom.get_config(v)) for v in ("", "smoke"))
    assert "denoiser.train.steps" in configs.difference(a, b)
    assert configs.difference(a, a) == []


def test_reference_takes_back_what_a_size_variant_mends():
    c = kvasir_seg.get_config("cpu+reference")
    assert {stage.train.optimizer for stage in (c.prior, c.disentangler, c.denoiser)} == {"adamw"}
    assert not c.prior.flip and not c.disentangler.word_dropout
    assert (c.prior.train.learning_rate, c.denoiser.train.learning_rate) == (2e-3, 1e-3)
