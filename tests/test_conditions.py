"""What every condition promises, on untrained weights and made-up rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import phantom
from vgjax import build, conditions
from vgjax.config import ConfigError, from_config_dict
from vgjax.stages import denoiser
from vgjax.text import load_text_encoder
from vgjax.types import Request

CLASSES = ("benign", "malignant")
TEXTS = ("A small round lesion.", "A large lobed lesion with two satellites.", "Blurred, amber.", "Dark and grainy.")


def config_of(name, **changes):
    c = phantom.get_config("smoke" if name != "class_label" else "smoke+class_label")
    c.update_from_flattened_dict({"denoiser.condition": name, "text_encoder.width": 64, **changes})
    return from_config_dict(c)


def embedded(config, text):
    return np.asarray(load_text_encoder(config.text_encoder)([text]))[0]


class Fixture:
    """A condition with what it reads: an untrained disentangler, a basis fitted to made-up rows, parameters."""

    def __init__(self, name):
        self.config = c = config_of(name)
        self.condition = conditions.of(c)
        rng, words = np.random.default_rng(0), " ".join(TEXTS).split()
        self.rows = {
            split: [
                {"embedding": embedded(c, " ".join(rng.choice(words, 6))), "label": CLASSES[i % 2]} for i in range(24)
            ]
            for split in ("train", "validation")
        }
        self.frozen, self.asked = {}, []
        if "disentangler" in self.condition.needs:
            module, embedding = build.disentangler(c), jnp.zeros((2, c.text_encoder.width))
            self.frozen["disentangler"] = module.init(jax.random.key(0), embedding, train=False)
            for row in (row for rows in self.rows.values() for row in rows):  # text tells everything of the pictures
                anatomy, modality = module.apply(self.frozen["disentangler"], row["embedding"][None], train=False)[:2]
                row |= {"anatomy": np.asarray(anatomy[0]), "modality": np.asarray(modality[0])}
        fitted = self.condition.fit(self.frozen, lambda columns, split: self.asked.append(columns) or self.rows[split])
        self.frozen["basis"] = jax.tree.map(jnp.asarray, fitted)
        self.params, self.initial = self.condition.init(jax.random.key(1), self.frozen)

    def batch(self, rows):
        examples = [self.condition.example(row) for row in rows]
        return {name: jnp.stack([example[name] for example in examples]) for name in examples[0]}

    def tokens(self, inputs, **keep):
        count = len(jax.tree.leaves(inputs)[0])
        kept = {name: jnp.full(count, keep.get(name, True)) for name in self.condition.channels}
        return self.condition.tokens(self.params, self.frozen, inputs, kept)


@pytest.fixture(scope="module")
def made():
    return {name: Fixture(name) for name in conditions.CONDITIONS}


def requests(name):
    if name == "class_label":
        return [Request(label=label) for label in CLASSES]
    return [Request(prompt=text) for text in TEXTS[:2]]


CONDITIONS = pytest.mark.parametrize("name", list(conditions.CONDITIONS))
TEXT_CONDITIONS = pytest.mark.parametrize("name", ["factors", "published"])


@CONDITIONS
def test_shapes_of_inputs_and_tokens(made, name):
    one = made[name]
    c, rows = one.config, one.rows["train"][:3]
    assert set(one.asked) <= {one.condition.fit_columns}
    from_rows = one.condition.from_rows(one.frozen, one.batch(rows), None)
    assert tuple(from_rows) == one.condition.channels
    chex.assert_tree_shape_prefix(from_rows, (3,))
    drawn = one.condition.from_requests(one.frozen, requests(name))
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, jax.tree.map(lambda a: a[:2], from_rows))
    tokens = one.tokens(from_rows)
    chex.assert_shape(tokens.tokens_BND, (3, len(one.condition.channels), c.denoiser.token_width))
    chex.assert_shape(tokens.mask_BN, (3, len(one.condition.channels)))
    grid, width = c.prior.grid, c.denoiser.width
    if name == "factors":
        chex.assert_shape(tokens.spatial_BggD, (3, grid, grid, width))
    if name != "published":
        chex.assert_shape(tokens.style_BD, (3, width))
    chex.assert_trees_all_equal_shapes(
        jax.tree.map(lambda a: a[:1], one.initial), jax.tree.map(lambda a: a[:1], tokens)
    )
    build.dit(c).init(jax.random.key(0), jnp.zeros((3, *build.latent_shape(c))), jnp.zeros(3), tokens)


@CONDITIONS
def test_a_dropped_channel_is_its_null_whatever_was_asked_of_it(made, name):
    one = made[name]
    inputs = one.condition.from_requests(one.frozen, requests(name))
    for place, channel in enumerate(one.condition.channels):
        kept, dropped = one.tokens(inputs), one.tokens(inputs, **{channel: False})
        assert np.abs(kept.tokens_BND[0, place] - kept.tokens_BND[1, place]).max() > 1e-4
        chex.assert_trees_all_close(dropped.tokens_BND[0, place], dropped.tokens_BND[1, place], atol=0)
        other = {**inputs, channel: jax.tree.map(lambda a: a[::-1], inputs[channel])}
        chex.assert_trees_all_close(one.tokens(other, **{channel: False}), dropped, atol=0)
        others = [i for i in range(len(one.condition.channels)) if i != place]
        chex.assert_trees_all_close(dropped.tokens_BND[:, others], kept.tokens_BND[:, others], atol=0)
        if name == "published":
            assert not dropped.tokens_BND[:, place].any()


@TEXT_CONDITIONS
def test_requests_mix_the_channels_of_two_texts(made, name):
    one = made[name]
    read = lambda **texts: one.condition.from_requests(one.frozen, [Request(**texts)])
    first, second = read(prompt=TEXTS[0]), read(prompt=TEXTS[2])
    for mixed in (read(anatomy=TEXTS[0], modality=TEXTS[2]), read(prompt=TEXTS[0], modality=TEXTS[2])):
        chex.assert_trees_all_close(mixed, {"anatomy": first["anatomy"], "modality": second["modality"]}, atol=1e-6)
    assert all(np.abs(first[channel] - second[channel]).max() > 1e-4 for channel in first)


@TEXT_CONDITIONS
def test_requests_and_rows_of_one_text_agree(made, name):
    one = made[name]
    embedding = np.asarray(load_text_encoder(one.config.text_encoder)(list(TEXTS[:2])))
    rows = one.condition.from_rows(one.frozen, one.batch([{"embedding": e} for e in embedding]), None)
    chex.assert_trees_all_close(one.condition.from_requests(one.frozen, requests(name)), rows, atol=1e-6)


@TEXT_CONDITIONS
@pytest.mark.parametrize("request_", [Request(label="benign"), Request(anatomy="a lesion")])
def test_a_channel_without_words_is_refused(made, name, request_):
    with pytest.raises(ConfigError, match=f"condition '{name}' takes words: give a prompt"):
        made[name].condition.from_requests(made[name].frozen, [request_])


def test_noise_falls_on_the_components_of_training_alone(made):
    one = made["factors"]
    batch = one.batch(one.rows["train"])
    plain, noisy, again = (one.condition.from_rows(one.frozen, batch, key) for key in (None, *[jax.random.key(0)] * 2))
    chex.assert_trees_all_equal(noisy, again)
    for channel in plain:
        assert np.std(noisy[channel] - plain[channel]) == pytest.approx(one.config.denoiser.condition_noise, rel=0.3)
    assert (
        np.abs((noisy["anatomy"] - plain["anatomy"])[:, :8] - (noisy["modality"] - plain["modality"])[:, :8]).max()
        > 0.01
    )


def test_the_class_of_a_row_reaches_the_tokens(made):
    one = made["class_label"]
    rows = [{"label": label} for label in ("malignant", "benign", "malignant", "never seen", "")]
    tokens = one.tokens(one.condition.from_rows(one.frozen, one.batch(rows), None))
    parts = np.concatenate([tokens.tokens_BND[:, 0], tokens.style_BD], axis=-1)
    np.testing.assert_array_equal(parts[0], parts[2])
    assert np.abs(parts[0] - parts[1]).max() > 1e-3
    asked = one.tokens(
        one.condition.from_requests(one.frozen, [Request(label=label) for label in ("malignant", "benign")])
    )
    np.testing.assert_array_equal(asked.tokens_BND, tokens.tokens_BND[:2])
    null = one.tokens(one.condition.from_rows(one.frozen, one.batch(rows[:1]), None), **{"class": False})
    null = np.concatenate([null.tokens_BND[:, 0], null.style_BD], axis=-1)[0]
    np.testing.assert_array_equal(parts[3:], [null, null])
    assert np.abs(parts[:2] - null).max(axis=-1).min() > 1e-3


def test_an_unknown_class_is_refused_in_one_sentence(made):
    one = made["class_label"]
    with pytest.raises(ConfigError, match=r"class 'mole' is not .*: choose one of 'benign', 'malignant'$") as caught:
        one.condition.from_requests(one.frozen, [Request(label="benign"), Request(label="mole")])
    assert "\n" not in str(caught.value)


def test_long_class_names_and_those_of_equal_beginning_are_told_by_their_beginning():
    condition = conditions.of(config_of("class_label"))
    long = "ü" * 40
    frozen = {"basis": condition.fit({}, lambda columns, split: [{"label": long + end} for end in ("", "x", "y")])}
    assert len(frozen["basis"]["classes"]) == 1
    condition.from_requests(frozen, [Request(label=long + "x")])
    with pytest.raises(ConfigError, match="class 'other'"):
        condition.from_requests(frozen, [Request(label="other")])


def test_a_dataset_without_classes_is_refused():
    condition = conditions.of(config_of("class_label"))
    with pytest.raises(ConfigError, match="the dataset names no classes"):
        condition.fit({}, lambda columns, split: [{"label": ""}])


@CONDITIONS
def test_conditions_read_the_columns_that_they_declare(made, name):
    one = made[name]
    assert set(one.condition.columns) <= set(denoiser.columns(one.config))
    assert one.condition.needs == tuple(stage for stage in ("disentangler",) if stage in one.frozen)
    assert ("basis" in one.frozen) and (bool(one.frozen["basis"]) == bool(one.condition.fit_columns))


@pytest.mark.parametrize(
    ("condition", "key", "value", "message"),
    [
        ("factors", "sample.guidance", {"anatomy": 2.0}, "names anatomy, but .* 'factors' are anatomy, modality: set"),
        ("factors", "denoiser.dropout", {"class": 0.1}, "names class, but"),
        ("published", "denoiser.dropout", {}, "names nothing, but"),
        ("class_label", "sample.guidance", {"class": 2.0, "text": 1.0}, "names class, text, but .* are class: set"),
    ],
)
def test_guidance_and_dropout_name_the_channels_of_the_condition(condition, key, value, message):
    config = config_of(condition)
    conditions.check(config)
    group, name = key.split(".")
    changed = config.model_copy(update={group: getattr(config, group).model_copy(update={name: value})})
    with pytest.raises(ConfigError, match=f"config key '{key}' {message}"):
        conditions.check(changed)
