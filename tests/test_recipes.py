"""What decides an artefact: declared keys, digests, and how two recipes differ."""

import dataclasses
import pickle
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import REPO
from vgjax.recipes import ABSENT, Recipe, UndeclaredKey, declared, scoped


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int = 600
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Prior:
    widths: tuple[int, ...] = (8, 16)
    train: Train = Train()


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    priority: int = 1
    workers: int = 4
    prior: Prior = Prior()


FLAT = {"seed": 0, "priority": 1, "workers": 4, "prior.widths": (8, 16), "prior.train.steps": 600}
FLAT["prior.train.rate"] = 0.1


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["seed"], {"seed"}),
        (["prior.*"], {"prior.widths", "prior.train.steps", "prior.train.rate"}),
        (["-prior.train.rate", "prior.*"], {"prior.widths", "prior.train.steps"}),
        (["prior.*", "-prior.train.*"], {"prior.widths"}),
        (["prior.train.steps", "priority"], {"prior.train.steps", "priority"}),
        ([], set()),
    ],
)
def test_keys_declare(keys, names):
    assert declared(FLAT, keys) == {name: FLAT[name] for name in names}


@pytest.mark.parametrize(
    "keys", [["sead"], ["prior"], ["train.*"], ["seed", "-workers"], ["seed.steps"], ["prior.*", "-prior.workers"]]
)
def test_a_key_that_declares_nothing_is_a_fault(keys):
    with pytest.raises(ValueError, match="declares nothing"):
        declared(FLAT, keys)
    with pytest.raises(ValueError, match="declares nothing"):
        scoped(Config(), keys)


def test_a_view_holds_the_declared_keys_alone():
    view = scoped(Config(), ["seed", "prior.*", "-prior.train.rate"])
    assert (view.seed, view.prior.widths, view.prior.train.steps) == (0, (8, 16), 600)
    with pytest.raises(UndeclaredKey, match=r"'workers' is read but not declared: declare it in the keys"):
        _ = view.workers
    with pytest.raises(UndeclaredKey, match=r"'prior\.train\.rate'"):
        _ = view.prior.train.rate
    with pytest.raises(UndeclaredKey, match=r"'prior\.train\.rate'"):  # worker processes are handed views
        _ = pickle.loads(pickle.dumps(view)).prior.train.rate
    assert not hasattr(view, "flat")
    for group in (view, view.prior.train):
        with pytest.raises(AttributeError, match="read-only"):
            group.steps = 3


def test_a_group_without_declared_keys_names_the_key_that_is_read():
    with pytest.raises(UndeclaredKey, match=r"'prior\.train\.steps'"):
        _ = scoped(Config(), ["seed"]).prior.train.steps


def test_a_fully_declared_group_is_the_original():
    config = Config()
    assert scoped(config, ["prior.*"]).prior is config.prior
    assert scoped(config, ["prior.train.steps", "prior.train.rate"]).prior.train is config.prior.train
    assert not isinstance(scoped(config, ["prior.train.*"]).prior, Prior)
    assert scoped(config, ["seed", "priority", "workers", "prior.*"]) is config


def test_a_view_of_pydantic_models():
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", steps=(int, 600), rate=(float, 0.1))
    config = pydantic.create_model("Outer", seed=(int, 0), inner=(inner, inner()))()
    assert scoped(config, ["inner.*"]).inner is config.inner
    view = scoped(config, ["inner.steps"])
    assert view.inner.steps == 600
    with pytest.raises(UndeclaredKey, match=r"'inner\.rate'"):
        _ = view.inner.rate


def recipe(**changes: Any) -> Recipe:
    pictures = Recipe("pictures", 1, {"data.image_size": 16}, raw="stamps")
    values = {"name": "prior", "version": 1, "keys": {"seed": 0, "widths": (8, 16)}, "inputs": {"pictures": pictures}}
    return Recipe(**values | {"raw": "weights"} | changes)


@pytest.mark.parametrize(
    ("changes", "identity_too"),
    [
        ({"name": "denoiser"}, True),
        ({"version": 2}, False),
        ({"keys": {"seed": 1, "widths": (8, 16)}}, True),
        ({"keys": {"seed": 0.0, "widths": (8, 16)}}, True),
        ({"keys": {"seed": 0, "widths": (16, 8)}}, True),
        ({"keys": {"seed": 0}}, True),
        ({"keys": {"seed": 0, "widths": (8, 16), "steps": 3}}, True),
        ({"raw": "others"}, True),
        ({"inputs": {}}, True),
        ({"inputs": {"images": Recipe("pictures", 1, {"data.image_size": 16}, raw="stamps")}}, True),
        ({"inputs": {"pictures": Recipe("pictures", 1, {"data.image_size": 32}, raw="stamps")}}, True),
        ({"inputs": {"pictures": Recipe("pictures", 1, {"data.image_size": 16}, raw="others")}}, True),
        ({"inputs": {"pictures": Recipe("pictures", 2, {"data.image_size": 16}, raw="stamps")}}, False),
    ],
)
def test_the_digest_depends_on_everything_declared(changes, identity_too):
    assert recipe(**changes).digest != recipe().digest
    assert (recipe(**changes).identity != recipe().identity) == identity_too


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trained": True},
        {"keys": {"widths": (8, 16), "seed": 0}},  # order
        {"keys": {"seed": 0, "widths": [8, 16]}},  # what JSON gives back
    ],
)
def test_the_digest_depends_on_nothing_else(changes):
    assert (recipe(**changes).digest, recipe(**changes).identity) == (recipe().digest, recipe().identity)
    assert Recipe.read(recipe().describe()).digest == recipe().digest


def test_digests_stay_as_they_are():
    assert recipe().label == "prior-56c5717c80fe"  # changing it makes every artefact of every user again


def test_a_name_that_cannot_be_a_folder_is_a_fault():
    with pytest.raises(ValueError, match="cannot name an artefact"):
        Recipe("a/b", 1, {})


def test_differences_name_the_input_that_they_come_from():
    small, large = (Recipe("pictures", 1, {"data.image_size": size}) for size in (16, 32))

    def denoiser(pictures: Recipe) -> Recipe:
        prior = Recipe("prior", 1, {"seed": 0}, {"pictures": pictures})
        return Recipe("denoiser", 1, {}, {"pictures": pictures, "prior": prior})

    found = denoiser(large).differences(denoiser(small))
    assert found == ["made from other pictures (key data.image_size was 16, is now 32)"]
    assert recipe(version=3, raw=ABSENT).differences(recipe()) == ["version 1 -> 3", "raw data is absent"]
    assert recipe(inputs={}, keys={"seed": 0}).differences(recipe()) == [
        "key widths was [8,16], is now undeclared",
        "no longer made from pictures",
    ]
    assert recipe(raw="others").differences(recipe()) == ["raw data changed"]


def test_the_store_needs_no_jax():
    code = "import sys, vgjax.store; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
