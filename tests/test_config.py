import importlib
import json
import math
import pathlib
import subprocess
import sys
import typing

import ml_collections
import pydantic
import pytest

from configs import base, kvasir_seg, phantom
from vgjax import conditions
from vgjax import config as configs
from vgjax.config import Autoencoder, Config, ConfigError, Data, Sample, Training
from vgjax.data.sources import SOURCES
from vgjax.evaluation import evaluate
from vgjax.keys import Group, build, describe, key

NAMES = sorted(p.stem for p in pathlib.Path("configs").glob("*.py") if p.stem not in ("__init__", "base"))


def load(name: str, variants: str = ""):
    c = importlib.import_module(f"configs.{name}").get_config(variants)
    c.data.root = "somewhere"
    return c


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variants", ["", "reference+smoke", *base.VARIANTS])
def test_every_readable_config_and_variant_is_valid(name, variants):
    built = configs.from_config_dict(load(name, variants))
    conditions.check(built)
    evaluate.check(built)
    assert built.name == name
    assert build(Config, json.loads(json.dumps(built.model_dump()))) == built


@pytest.mark.parametrize("name", ["kvasir_seg", "ham10000", "busi", "covid_cxr"])
def test_real_pictures_want_an_autoencoder_or_the_variant_without(name):
    for more in ("", "+reference", "+pixart_text", "+smoke"):
        c = load(name, f"cpu{more}")
        with pytest.raises(ConfigError, match=r"'autoencoder\.path' is empty .*$"):
            configs.from_config_dict(c)
        c.autoencoder.path = "."
        assert configs.from_config_dict(c).data.image_size == 128
        built = configs.from_config_dict(load(name, f"cpu+pixels{more}"))
        assert (built.data.image_size, built.autoencoder.kind) == (64, "pixel")


def test_children_keep_the_keys_of_base():
    keys = set(base.get_config().to_dict())
    assert all(set(load(name).to_dict()) == keys for name in NAMES)


def test_smoke_is_smaller_everywhere():
    full, tiny = (configs.from_config_dict(phantom.get_config(v)) for v in ("", "smoke"))
    for stage in ("prior", "disentangler", "denoiser"):
        assert getattr(tiny, stage).train.steps < getattr(full, stage).train.steps / 10
    assert tiny.data.train_items < full.data.train_items


def test_unknown_variant_lists_the_known():
    with pytest.raises(ValueError, match=r"'huge'.*class_label, cpu, .*, reference, .*, smoke"):
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
        ("denoiser.dropout.anatomy", 1.0, r"dropout\.anatomy' is 1\.0: give a number in \[0, 1\)$"),
        ("sample.guidance.modality", -1.0, r"guidance\.modality' is -1\.0: give a number of at least 0$"),
        ("denoiser.train.steps", 0, r"denoiser\.train\.steps.*positive"),
        ("denoiser.train.learning_rate", -1.0, r"learning_rate.*positive"),
        ("denoiser.train.schedule", "linear", r"schedule.*cosine"),
        ("text_encoder.kind", "bert", r"text_encoder\.path"),
        (
            "disentangler.weights",
            "a.safetensors",
            r"disentangler\.weights' is 'a\.safetensors' with",
        ),
        ("denoiser.flip", True, r"denoiser\.flip' is True with denoiser\.learn_from 'pictures'"),
        ("denoiser.condition", "text_heads", r"disentangler\.method' is 'flow' with .*'text_heads'"),
        ("denoiser.colour_gradient_steps", 21, r"colour_gradient_steps' is 21.*exceed.*colour_steps 20$"),
        ("sample.solver", "dpmpp_2m", r"sample\.solver.*euler"),
        ("mesh.fsdp", 0, r"mesh\.fsdp.*positive"),
        ("mesh.data", 0, r"mesh\.data' is 0.*positive.*-1"),
        ("mesh.data", -2, r"mesh\.data' is -2: give a number of at least -1$"),
        ("text_encoder.width", 0, r"text_encoder\.width' is 0: give a positive number$"),
        (
            "text_encoder.kind",
            "word2vec",
            r"text_encoder\.kind' is 'word2vec': choose one of vocabulary, hashing, bert$",
        ),
        ("data.captions", "mine", r"data\.captions' is 'mine': choose one of own, measured, both$"),
        ("prior.widths", (16, 0), r"prior\.widths\[1\]' is 0: give a positive number$"),
        ("prior.train.adam_b2", 1.0, r"adam_b2' is 1\.0: give a number in \(0, 1\)$"),
        ("denoiser.train.learning_rate", math.nan, r"denoiser\.train\.learning_rate' is nan: give a finite number$"),
        ("denoiser.mlp_ratio", math.inf, r"denoiser\.mlp_ratio' is inf: give a finite number$"),
        ("prior.weight_kl", -math.inf, r"prior\.weight_kl' is -inf: give a finite number$"),
        (
            "denoiser.condition",
            "factors ",
            r"condition' is 'factors ': choose one of factors, published, class_label, text_tok",
        ),
    ],
)
def test_bad_values_are_refused_by_name(key, value, match):
    changes = {"denoiser.heads": 2} if key == "denoiser.width" else {}
    refused({**changes, key: value}, match)


def test_unknown_key_and_missing_key():
    refused({"denoiser.wdith": 3, "seed": -1}, r"unknown config key 'denoiser\.wdith'")
    c = phantom.get_config()
    with c.unlocked():
        del c.data.root
    with pytest.raises(ConfigError, match=r"missing config key 'data\.root'"):
        configs.from_config_dict(c)


def test_wrong_types_are_refused():
    c = phantom.get_config()
    c.denoiser.unlock()
    c = c.to_dict()
    for name, value, match in (
        ("seed", "7", r"^config key 'seed' must be of type int, not '7'$"),
        ("seed", True, "type int"),
        ("seed", 7.0, "type int"),
        ("name", None, "type str"),
        ("data", 3, "'data' is a group of keys, not 3"),
        ("prior", {**c["prior"], "flip": 1}, r"prior\.flip' must be of type bool"),
        ("prior", {**c["prior"], "weight_l1": True}, r"weight_l1' must be of type float"),
        ("prior", {**c["prior"], "widths": 16}, r"widths' must be a sequence of int values, .*not 16"),
        ("prior", {**c["prior"], "widths": (16, 0.5)}, r"widths\[1\]' must be of type int, not 0\.5"),
    ):
        with pytest.raises(ConfigError, match=match):
            build(Config, {**c, name: value})


def test_ints_serve_as_floats_and_lists_as_tuples():
    c = phantom.get_config().to_dict()
    c["prior"].update(weight_l1=2, widths=[16, 32])
    prior = build(Config, c).prior
    assert (prior.weight_l1, prior.widths) == (2.0, (16, 32))
    assert (type(prior.weight_l1), type(prior.widths)) == (float, tuple)


def groups_in(group: Group) -> list[Group]:
    children = [value for _, value in group if isinstance(value, Group)]
    return [group, *(g for child in children for g in groups_in(child))]


def undocumented(group: Group) -> list[str]:
    return [
        f"{type(g).__name__}.{name}"
        for g in groups_in(group)
        for name, field in type(g).model_fields.items()
        if not field.description and not isinstance(getattr(g, name), Group)
    ]


def test_every_key_and_group_is_documented_and_has_a_valid_default():
    class Bare(Group):
        colour: str = "red"

    assert undocumented(Bare()) == ["Bare.colour"]
    assert undocumented(Config()) == []
    assert all(type(group).__doc__ for group in groups_in(Config()))
    assert build(Config, Config().model_dump()) == Config()
    assert base.get_config().to_dict() == Config().model_dump()


def test_a_key_added_in_one_place_is_known_everywhere():
    class Palette(Group):
        """Colours."""

        kind: typing.Literal["warm", "cold"] = key("cold", "which colours to use")
        count: pydantic.PositiveInt = key(3, "how many colours")

    class Wider(Config):
        palette: Palette = Palette()

    c = configs.defaults(Wider)
    assert isinstance(c.palette, ml_collections.ConfigDict) and c.palette.count == 3
    lines = describe(Wider())
    start = lines.index("palette: Colours.")
    assert lines[start + 1 :] == [
        "  palette.kind = 'cold'  (one of warm, cold)",
        "      which colours to use",
        "  palette.count = 3  (a positive number)",
        "      how many colours",
    ]
    with pytest.raises(AttributeError, match="Did you mean"):
        c.palette.cuont  # noqa: B018
    assert build(Wider, c.to_dict()).flat()["palette.count"] == 3
    for name, value, match in (("count", 0, r"palette\.count' is 0"), ("kind", "grey", r"palette\.kind' is 'grey'")):
        with pytest.raises(ConfigError, match=match):
            build(Wider, {**c.to_dict(), "palette": {**c.palette.to_dict(), name: value}})
    with pytest.raises(ConfigError, match=r"missing config key 'palette'"):
        build(Wider, Config().model_dump())


def test_groups_are_frozen_hashable_and_equal_by_value():
    one, other = (
        Autoencoder(kind="kl", path="x"),
        build(Autoencoder, {**Autoencoder().model_dump(), "path": "x", "kind": "kl"}),
    )
    assert one == other and hash(one) == hash(other) and one != Autoencoder()
    assert len({Config(), build(Config, Config().model_dump()), Config(seed=1)}) == 2
    told = [
        build(Sample, {**Sample().model_dump(), "guidance": guidance})
        for guidance in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    ]
    assert told[0] == told[1] != Sample() and hash(told[0]) == hash(told[1])
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        one.kind = "tiny"
    with pytest.raises(pydantic.ValidationError, match="greater than 0"):
        Training(steps=0)


def test_a_stored_config_is_read_with_the_same_checks():
    text = json.dumps(Config().model_dump())
    from_json = lambda text: build(Config, json.loads(text))
    assert from_json(text) == Config()
    with pytest.raises(ConfigError, match=r"seed' is -1: give a number in \[0, 18446744073709551616\)$"):
        from_json(text.replace('"seed": 0', '"seed": -1'))
    with pytest.raises(ConfigError, match=r"learning_rate' is nan"):
        from_json(text.replace('"learning_rate": 0.006', '"learning_rate": NaN'))


def test_every_source_can_be_chosen_and_no_other():
    assert {*typing.get_args(Data.model_fields["source"].annotation)} == {"phantom", *SOURCES} == set(NAMES)


def test_configs_load_without_jax():
    loaded = "import sys, configs.phantom; configs.phantom.get_config(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"phantom"}))
def test_datasets_need_a_root(name):
    with pytest.raises(ConfigError, match=r"data\.root' is empty: name .*--config\.data\.root=FOLDER"):
        SOURCES[name].check("")


def test_batch_norm_needs_two_pictures():
    published = {"prior.variant": "reference", "prior.weight_appearance": 0.0, "prior.weight_consistency": 0.0}
    single = {**published, "prior.train.batch_size": 1}
    refused(single, r"prior\.train\.batch_size' is 1: the published SDNet normalises over the batch.*at least 2$")
    for others in ({**single, "prior.variant": "default"}, {**single, "prior.weights": "sdnet.safetensors"}):
        c = phantom.get_config()
        c.update_from_flattened_dict(others)
        configs.from_config_dict(c)


def test_the_published_prior_has_no_terms_of_the_default():
    refused({"prior.variant": "reference"}, r"prior\.variant' is 'reference'.*so set prior\.weight_appearance and")


def test_reference_takes_back_what_a_size_variant_mends():
    c = kvasir_seg.get_config("cpu+reference")
    assert {stage.train.optimizer for stage in (c.prior, c.disentangler, c.denoiser)} == {"adamw"}
    assert not c.prior.flip
    assert (c.prior.train.learning_rate, c.denoiser.train.learning_rate) == (2e-3, 1e-3)


def test_only_factors_can_be_one_channel():
    changes = {"denoiser.channels": "one", "denoiser.condition": "class_label"}
    refused(changes, r"denoiser\.channels' is 'one' with denoiser\.condition 'class_label': only factors")
