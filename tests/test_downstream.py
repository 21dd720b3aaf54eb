"""Usefulness: useful drawn pictures are seen to be, harmful ones too; a run broken off goes on with the next arm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import ham10000, phantom
from tests.test_evaluate import drawn, measured, open_run  # noqa: F401
from vgjax.checkpoint import save_export
from vgjax.config import ConfigError, from_config_dict
from vgjax.data.sources import phantom as source
from vgjax.evaluation import classifier, downstream, draw
from vgjax.evaluation.classifier import Classifier, Network, Pool

CLASSES = ("common", "other", "rare")


class Energies(nn.Module):
    """Power behind a few filters: sees stripes wherever they lie, and compiles at once."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, image_BHWC, train):
        x = jnp.square(nn.Conv(8, (5, 5), 2, name="filters")(image_BHWC.mean(-1, keepdims=True)))
        return nn.Dense(self.classes)(4 * x.mean((1, 2)))


def stripes(rng, label, side=16):
    """A noisy picture with stripes of a random phase: lying, standing, or, of the rare class, falling or rising."""
    row, column = np.mgrid[:side, :side]
    along = (row, column, 0.7 * (row + rng.choice([-1, 1]) * column))[label]
    wave = np.cos(along + rng.uniform(0, 2 * np.pi))
    return np.clip(128 + 40 * wave[..., None] + 40 * rng.normal(size=(side, side, 3)), 0, 255).astype(np.uint8)


def pool(seed, *counts, shown=(0, 1, 2)):
    """Counts of each class, whose pictures show another where `shown` says so."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(3), counts)
    return Pool(np.stack([stripes(rng, shown[label]) for label in labels]), labels)


REAL = {"train": pool(0, 60, 60, 1), "validation": pool(1, 20, 20, 20), "test": pool(2, 50, 50, 50)}
USEFUL = pool(3, 40, 40, 40)


def config(**changes):
    c = phantom.get_config("smoke")
    c.downstream.update(steps=60, batch_size=24, learning_rate=2e-2, **changes)
    c.evaluate.resamples = 100
    return from_config_dict(c)


@pytest.fixture
def small(monkeypatch):
    """Trains a network that is fast, and fewer mixtures."""
    monkeypatch.setattr(downstream, "SHARES", (0.2, 0.6))
    monkeypatch.setattr(classifier, "Network", Energies)


def usefulness(folder, fake, **changes):
    folder.mkdir(exist_ok=True)
    return downstream.measure(config(**changes), {**REAL, "drawn": fake}, CLASSES, 1, folder)


def test_what_is_drawn_usefully_raises_the_rare_class(tmp_path, small):
    found = usefulness(tmp_path, USEFUL)
    for arm in ("synthetic", "real_synthetic"):
        for score in ("recall/rare", "balanced_accuracy"):
            row = found[f"downstream/{arm}/difference/{score}"]
            assert row["interval"][0] > 0 and row["p"] < 0.05, (arm, score, row)
    assert found["downstream/pretrained/difference/recall/rare"]["value"] > 0
    row = found["downstream/real/balanced_accuracy"]
    assert (row["n"], row["seeds"], row["split"], row["net"]) == (150, 2, "test", "ResNet-18 of width 8 at 16 pixels")


def test_validation_chooses_the_share_whatever_the_test_pictures_say(tmp_path, small):
    right = {split: np.stack([np.eye(3)[REAL[split].labels]] * 2) for split in ("validation", "test")}
    wrong = {split: p[..., [1, 2, 0]] for split, p in right.items()}
    arms = {"real": wrong, "synthetic": wrong, "pretrained": right}
    arms |= {"real_synthetic_0.2": {**right, "validation": wrong["validation"]}}
    arms |= {"real_synthetic_0.6": {**wrong, "validation": right["validation"]}}
    for name, arm in arms.items():
        save_export(tmp_path / f"{name}.safetensors", arm)
    found = usefulness(tmp_path, USEFUL)
    share = found["downstream/real_synthetic/share"]
    assert (share["value"], share["split"], share["n"]) == (0.6, "validation", 60)
    values = {
        arm: found[f"downstream/{arm}/balanced_accuracy"]["value"]
        for arm in ("real", "synthetic", "real_synthetic", "pretrained")
    }
    assert values == {"real": 0, "synthetic": 0, "real_synthetic": 0, "pretrained": 1}


@pytest.mark.parametrize("harm", ["swapped", "collapsed"])
def test_swapped_classes_and_collapsed_modes_are_seen_as_harmful(tmp_path, small, harm):
    if harm == "swapped":
        fake = pool(3, 40, 40, 40, shown=(1, 0, 2))
    else:  # one picture, whatever is asked
        fake = USEFUL._replace(pictures=np.repeat(USEFUL.pictures[:1], len(USEFUL.labels), axis=0))
    row = usefulness(tmp_path, fake)["downstream/synthetic/difference/balanced_accuracy"]
    assert row["interval"][1] < 0 and row["p"] < 0.05


def test_a_run_broken_off_goes_on_with_the_next_arm_and_ends_as_it_would_have(tmp_path, small, monkeypatch):
    whole = usefulness(tmp_path / "whole", USEFUL)
    calls, train = [], Classifier.__call__

    def breaking(self, real, fake, shares, seed, seen):
        calls.append(float(np.mean(shares)))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return train(self, real, fake, shares, seed, seen)

    monkeypatch.setattr(Classifier, "__call__", breaking)
    with pytest.raises(KeyboardInterrupt):
        usefulness(tmp_path / "again", USEFUL)
    assert calls == pytest.approx([0, 0, 1, 1, 0.2, 0.2])
    assert usefulness(tmp_path / "again", USEFUL) == whole
    assert calls[6:] == pytest.approx([0.2, 0.2, 0.6, 0.6, 0.5, 0.5])


def test_classes_come_equally_often_and_drawn_pictures_in_their_share(small, monkeypatch):
    rng = np.random.default_rng(0)
    assert np.bincount(REAL["train"].balanced(rng, 3000).labels) == pytest.approx([1000] * 3, abs=100)
    marked = [Pool(np.full((3, 16, 16, 3), value, np.uint8), np.arange(3)) for value in (0, 255)]
    seen, moved = [], Classifier._moved

    def noting(self, state, image, label, key):
        jax.debug.callback(lambda x: seen.append(float((x == 255).mean())), image, ordered=True)
        return moved(self, state, image, label, key)

    monkeypatch.setattr(Classifier, "_moved", noting)
    Classifier(config().downstream, 3, 1)(*marked, np.repeat([0.0, 1.0, 0.25], 20), 0, [])
    jax.effects_barrier()
    assert set(seen[:20]) == {0.0} and set(seen[20:40]) == {1.0} and 0.15 < np.mean(seen[40:]) < 0.35


def test_weights_that_are_not_finite_are_told(small):
    with pytest.raises(ConfigError, match=r"'downstream.learning_rate' is 1e\+30: weights are not finite"):
        usefulness_of = config().downstream.model_copy(update={"learning_rate": 1e30})
        Classifier(usefulness_of, 3, 1)(REAL["train"], USEFUL, np.zeros(60), 0, [USEFUL])


def test_the_network_is_a_resnet_with_a_logit_a_class():
    shapes = jax.eval_shape(lambda x: Network(8, 3).init(jax.random.key(0), x, False), jnp.zeros((1, 16, 16, 3)))
    assert shapes["params"]["out"]["kernel"].shape == (64, 3) and "level3_1" in shapes["params"]["network"]


def test_of_each_class_as_many_are_asked_for_of_its_training_captions():
    labels = ["rare", "common", "", "common", "common", "common"]
    rows = [{"label": label, "caption": str(i)} for i, label in enumerate(labels)]
    asked = [(request.label, request.prompt) for request in draw.of_classes(rows, 2)]
    assert asked == [("common", "1"), ("common", "4"), ("rare", "0"), ("rare", "0")]


def test_usefulness_of_a_run_is_of_its_classes_and_joins_its_numbers(tmp_path, drawn, small):  # noqa: F811
    run = open_run(tmp_path / "run", ("downstream",))
    values = measured(run)
    rows = run.context.rows(["pictures"], "train")
    classes = sorted({rows[i]["label"] for i in range(4)})
    assert [request.label for request in drawn[0]] == [name for name in classes for _ in range(8)]
    assert {request.prompt for request in drawn[0]} <= {rows[i]["caption"] for i in range(4)}
    test = [run.context.rows(["pictures"], "test")[i]["label"] for i in range(8)]
    assert values["estimates"]["downstream/real/auroc"]["n"] == sum(label in classes for label in test)
    assert "downstream/pretrained/difference/macro_f1" in values and "downstream" in values["artefacts"]


def test_a_split_of_one_class_is_refused(tmp_path, drawn, small, monkeypatch):  # noqa: F811
    monkeypatch.setattr(downstream, "labelled", lambda rows: [("a", b"")])
    with pytest.raises(ConfigError, match="of at least two classes that training pictures show, so leave it out"):
        open_run(tmp_path / "run", ("downstream",)).artefact("downstream")


def test_the_rare_class_of_phantom_is_thinned_where_it_is_trained_on_and_told(tmp_path):
    c = phantom.get_config("rare")
    assert c.data.rare_every > 10 and "downstream" in c.evaluate.metrics
    c.data.update(rare_every=10, train_items=300, validation_items=1, test_items=1)
    rows = source.SOURCE.plan(from_config_dict(c), tmp_path).rows["train"]
    every = {split: list(source.items(split, 300, 0)) for split in ("train", "test")}
    told = {split: list(source.items(split, 300, 0, tells_class=True)) for split in every}
    for split, items in told.items():
        assert all({"shape", "size"} <= set(item.named) for item in items)
        assert [item.factors for item in items] == [item.factors for item in every[split]]
    assert not all({"shape", "size"} <= set(item.named) for item in every["train"])
    kept = list(source.thinned(iter(told["train"]), 10))
    assert {item.id: item.caption for item in kept} == {name: row["caption"] for name, row in rows.items()}
    rare = [item.id for item in told["train"] if item.label == source.RARE]
    assert [item.id for item in kept if item.label == source.RARE] == rare[::10] and len(rare) > 30
    assert len(kept) == 300 - len(rare) + len(rare[::10])
    assert list(source.thinned(iter(told["test"]), 10)) == told["test"]


@pytest.mark.parametrize(
    ("made", "changes", "told"),
    [
        (phantom, {"evaluate.metrics": ("downstream",)}, "'data.label_in_caption' is False and .* set it to True"),
        (phantom, {"downstream.batch_size": 1}, "'downstream.batch_size' is 1: .* give at least 2"),
        (ham10000, {"data.rare_every": 2}, "'data.rare_every' is 2 with data.source 'ham10000'"),
    ],
)
def test_what_cannot_show_usefulness_is_refused(made, changes, told):
    c = made.get_config("small") if made is ham10000 else made.get_config()
    c.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=told):
        from_config_dict(c)
