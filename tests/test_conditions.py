"""What every condition promises, on untrained weights and pictures of phantoms."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from configs import phantom
from vgjax import build, conditions, pipeline
from vgjax.conditions import factors
from vgjax.config import ConfigError, from_config_dict
from vgjax.data.read.decode import to_png
from vgjax.data.records import from_png
from vgjax.data.sources import phantom as source
from vgjax.models import bert
from vgjax.models.text_encoder import PooledBert
from vgjax.stages import denoiser
from vgjax.text import load_text_encoder
from vgjax.types import CHANNELS, Request

CLASSES = ("benign", "malignant")
TEXTS = ("A small round lesion.", "A large lobed lesion with two satellites.", "Blurred, amber.", "Dark and grainy.")
REGRESSION = {"disentangler.method": "regression", "denoiser.learn_from": "text"}
# Under which keys each condition is looked at: the default also where it learns from what a regression makes of texts.
VARIANTS: dict[str, dict] = {
    "factors": {},
    "from_text": {"denoiser.condition": "factors", **REGRESSION},
    "published": {"denoiser.condition": "published", **REGRESSION},
    "class_label": {},
    "text_tokens": {},
    "pretrained_tokens": {"text_encoder.max_length": 8},
    "text_heads": {},
    "one_channel": {},
}
RECIPES = {
    "class_label": "smoke+class_label",
    "text_tokens": "pixart_text+smoke",
    "pretrained_tokens": "pixart_text+smoke",
    "text_heads": "no_alignment+smoke",
    "one_channel": "one_channel+smoke",
}
TOKENS = ("text_tokens", "pretrained_tokens")


def config_of(name, **changes):
    c = phantom.get_config(RECIPES.get(name, "smoke"))
    hashing = {"text_encoder.kind": "hashing", "text_encoder.width": 64}  # needs no vocabulary of training captions
    c.update_from_flattened_dict({**hashing, **VARIANTS[name], **changes})
    return from_config_dict(c)


def shaken(params, seed=0):
    """Parameters moved from their initial values, at which the flows say nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), params)


def flow_params(config):
    """Of the flows of both channels."""
    two, params = jnp.ones(2, bool), {}
    for name, flow in build.factor_flows(config).items():
        given = {"text": jnp.zeros((2, config.text_encoder.width))}
        if name == "anatomy":
            given["mask"] = jnp.zeros((2, build.mask_cells(config) ** 2))
        x = jnp.zeros((2, flow.features))
        variables = jax.jit(flow.init)(jax.random.key(0), x, jnp.zeros(2), given, dict.fromkeys(given, two))
        params[name] = shaken(variables["params"])
    return {"params": params}


def tiny_bert(width, max_length=8):
    """An untrained encoder that knows a few words of a phantom."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "small", "large", "round", "lesion", "two", "satellites"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    ends = [(word, words.index(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    module = bert.Bert(bert.BertConfig("bert", len(words), width, 1, 2, 32, 16, 2, "gelu", 1e-12))
    variables = module.init(jax.random.key(3), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool))
    return PooledBert(module, {"params": shaken(variables["params"])}, tokenizer, max_length)


class Fixture:
    """A condition with what it reads: untrained stages, factors of phantoms, a basis fitted to them, parameters."""

    def __init__(self, name):
        self.config = c = config_of(name)
        self.condition = conditions.of(c)
        self.encoder = load_text_encoder(c.text_encoder)
        if name == "pretrained_tokens":
            self.encoder = self.condition._pretrained = tiny_bert(c.text_encoder.width)
        items = list(source.items("train", 24, seed=0))
        self.rows = [
            {"label": CLASSES[i % 2], "image": to_png(item.image), "mask_png": to_png(item.mask)}
            for i, item in enumerate(items)
        ]
        captions = [item.caption for item in items]
        texts = zip(self.rows, self.encoder(captions), self.encoder.ids(captions), strict=True)
        for row, embedding, ids in texts:
            row |= dict.fromkeys(("embedding", "anatomy_text", "modality_text"), embedding) | {"tokens": ids}
        self.frozen, self.asked = self.condition.frozen(), []
        stages = denoiser.drawing_needs(self.condition)
        if "prior" in stages:
            self.prior(np.stack([item.image for item in items]))
        if "disentangler" in stages:
            self.frozen["disentangler"] = self.disentangler()
        fitted = self.condition.fit(lambda columns, split: self.asked.append(columns) or self.rows)
        self.frozen["basis"] = jax.tree.map(jnp.asarray, fitted)
        self.params, self.initial = self.condition.init(jax.random.key(1), self.frozen)

    def prior(self, images):
        """An untrained stage 1 with its scales; the rows get the factors that it finds."""
        c = self.config
        module = build.prior(c)
        seen = pipeline.prior_input(jnp.asarray(images), build.prior_size(c), c.data.intensity)
        self.frozen["prior"] = dict(jax.jit(module.init)(jax.random.key(2), seen[:2]))
        model = build.Model(module, self.frozen["prior"])
        raw = jax.jit(lambda image: pipeline.raw_factors(pipeline.encode(model, image), c.prior.grid))(seen)
        stats = pipeline.factor_statistics(np.asarray(raw.anatomy_BggK), np.asarray(raw.modality_BZ))
        self.frozen["statistics"] = jax.tree.map(jnp.asarray, stats)
        found = pipeline.standardise(raw, stats)
        for row, anatomy, modality in zip(self.rows, found.anatomy_BggK, found.modality_BZ, strict=True):
            row |= {"anatomy": np.asarray(anatomy), "modality": np.asarray(modality)}

    def disentangler(self):
        c = self.config
        if c.disentangler.method == "flow":
            return flow_params(c)
        module, embedding = build.disentangler(c), jnp.zeros((2, c.text_encoder.width))
        return jax.jit(lambda key: module.init(key, embedding, train=False))(jax.random.key(0))

    def batch(self, rows):
        examples = [self.condition.example(row) for row in rows]
        return {name: jnp.stack([example[name] for example in examples]) for name in examples[0]}

    def read(self, requests, seeds=None):
        """The inputs of requests; all of the same seed where none are given."""
        return self.condition.from_requests(self.frozen, requests, seeds or [7] * len(requests), self.encoder)

    def tokens(self, inputs, **keep):
        count = len(jax.tree.leaves(inputs)[0])
        kept = {name: jnp.full(count, keep.get(name, True)) for name in self.condition.channels}
        return self.condition.tokens(self.params, self.frozen, inputs, kept)


@pytest.fixture(scope="module")
def made():
    return {name: Fixture(name) for name in VARIANTS}


def requests(name):
    if name == "class_label":
        return [Request(label=label) for label in CLASSES]
    return [Request(prompt=text) for text in TEXTS[:2]]


CONDITIONS = pytest.mark.parametrize("name", list(VARIANTS))
TEXT_CONDITIONS = pytest.mark.parametrize("name", ["factors", "from_text", "published", "text_heads", "one_channel"])
REGRESSIONS = pytest.mark.parametrize("name", ["from_text", "published", "text_heads"])


def test_every_condition_is_looked_at():
    assert {config_of(name).denoiser.condition for name in VARIANTS} == set(conditions.CONDITIONS)


@CONDITIONS
def test_shapes_of_inputs_and_tokens(made, name):
    one = made[name]
    c, rows = one.config, one.rows[:3]
    assert set(one.asked) <= {one.condition.fit_columns}
    from_rows = one.condition.from_rows(one.frozen, one.batch(rows), None)
    assert tuple(from_rows) == (CHANNELS if name == "one_channel" else one.condition.channels)
    chex.assert_tree_shape_prefix(from_rows, (3,))
    drawn = one.read(requests(name))
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, jax.tree.map(lambda a: a[:2], from_rows))
    tokens = one.tokens(from_rows)
    count = c.text_encoder.max_length if name in TOKENS else len(one.condition.channels)
    chex.assert_shape(tokens.tokens_BND, (3, count, c.denoiser.token_width))
    chex.assert_shape(tokens.mask_BN, (3, count))
    grid, width = c.prior.grid, c.denoiser.width
    if c.denoiser.condition in ("factors", "text_heads"):
        chex.assert_shape(tokens.spatial_BggD, (3, grid, grid, width))
    if c.denoiser.condition == "factors":
        assert {channel: x.shape[1] for channel, x in from_rows.items()} == build.factor_sizes(c)
    if name not in ("published", *TOKENS):
        chex.assert_shape(tokens.style_BD, (3, width))
    chex.assert_trees_all_equal_shapes(
        jax.tree.map(lambda a: a[:1], one.initial), jax.tree.map(lambda a: a[:1], tokens)
    )
    jax.eval_shape(build.dit(c).init, jax.random.key(0), jnp.zeros((3, *build.latent_shape(c))), jnp.zeros(3), tokens)


@CONDITIONS
def test_a_dropped_channel_is_its_null_whatever_was_asked_of_it(made, name):
    one = made[name]
    inputs = one.read(requests(name))
    for place, channel in enumerate(one.condition.channels):
        kept, dropped = one.tokens(inputs), one.tokens(inputs, **{channel: False})
        own = slice(None) if name in TOKENS else place
        assert np.abs(kept.tokens_BND[0, own] - kept.tokens_BND[1, own]).max() > 1e-4
        chex.assert_trees_all_close(dropped.tokens_BND[0, own], dropped.tokens_BND[1, own], atol=0)
        chex.assert_trees_all_equal(dropped.mask_BN[0], dropped.mask_BN[1])
        told = CHANNELS if name == "one_channel" else (channel,)
        other = {**inputs, **{part: inputs[part][::-1] for part in told}}
        chex.assert_trees_all_close(one.tokens(other, **{channel: False}), dropped, atol=0)
        others = [i for i in range(len(CHANNELS)) if i != place and len(one.condition.channels) > 1]
        chex.assert_trees_all_close(dropped.tokens_BND[:, others], kept.tokens_BND[:, others], atol=0)
        if name == "published":
            assert not dropped.tokens_BND[:, place].any()


@TEXT_CONDITIONS
def test_requests_mix_the_channels_of_two_texts(made, name):
    one = made[name]
    read = lambda **texts: one.read([Request(**texts)])
    first, second = read(prompt=TEXTS[0]), read(prompt=TEXTS[2])
    for mixed in (read(anatomy=TEXTS[0], modality=TEXTS[2]), read(prompt=TEXTS[0], modality=TEXTS[2])):
        chex.assert_trees_all_close(mixed, {"anatomy": first["anatomy"], "modality": second["modality"]}, atol=1e-6)
    assert all(np.abs(first[channel] - second[channel]).max() > 1e-4 for channel in first)


@REGRESSIONS
def test_requests_and_rows_of_one_text_agree(made, name):
    one = made[name]
    embedding = one.encoder(list(TEXTS[:2]))
    texts = [dict.fromkeys(("embedding", "anatomy_text", "modality_text"), e) for e in embedding]
    rows = one.condition.from_rows(one.frozen, one.batch(texts), None)
    chex.assert_trees_all_close(one.read(requests(name)), rows, atol=1e-6)


@REGRESSIONS
@pytest.mark.parametrize(
    "request_",
    [
        Request(label="benign"),
        Request(anatomy="a lesion"),
        Request(prompt="a lesion", mask=b"png"),
        Request(prompt="a lesion", anatomy_image=b"png"),
        Request(prompt="a lesion", modality_image=b"png"),
        Request(prompt="a lesion", source=b"png"),
    ],
)
def test_a_regression_takes_words_for_each_channel_and_nothing_else(made, name, request_):
    one = made[name]
    asked = rf"^condition '{one.config.denoiser.condition}' .* takes words and nothing else: give a prompt, and no pict"
    with pytest.raises(ConfigError, match=asked):
        one.read([Request(prompt="a lesion"), request_])


def picture_and_mask(one, row=3):
    return one.rows[row]["image"], one.rows[row]["mask_png"]


def test_a_picture_asks_for_its_own_factors(made):
    """Measured as the training rows were, at whatever place among other requests."""
    one = made["factors"]
    image, _ = picture_and_mask(one)
    shown = Request(anatomy_image=image, modality_image=image)
    found = one.read([Request(prompt=TEXTS[0]), shown])
    wanted = one.condition.from_rows(one.frozen, one.batch([one.rows[3]]), None)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1:], found), wanted, atol=1e-4)
    c, prior = one.config, build.Model(build.prior(one.config), one.frozen["prior"])
    seen = pipeline.prior_input(jnp.asarray(from_png(image)[None]), build.prior_size(c), c.data.intensity)
    own = pipeline.to_components(pipeline.image_factors(prior, one.frozen["statistics"], seen), one.frozen["basis"])
    chex.assert_trees_all_close(wanted, own, atol=1e-4)


def test_a_picture_of_one_channel_leaves_the_other_to_the_text_and_goes_before_its_own(made):
    one = made["factors"]
    image, mask = picture_and_mask(one)
    told = one.read([Request(prompt=TEXTS[0])])
    both = one.read([Request(anatomy_image=image, modality_image=image)])
    mixed = one.read([Request(prompt=TEXTS[0], mask=mask, anatomy_image=image)])
    chex.assert_trees_all_close(mixed, {"anatomy": both["anatomy"], "modality": told["modality"]}, atol=1e-5)
    mixed = one.read([Request(prompt=TEXTS[0], modality_image=image)])
    chex.assert_trees_all_close(mixed, {"anatomy": told["anatomy"], "modality": both["modality"]}, atol=1e-5)


def test_pictures_are_read_a_few_at_a_time_and_flows_rest_where_all_is_shown(made, monkeypatch):
    one = made["factors"]
    shown = [Request(anatomy_image=row["image"], modality_image=row["image"]) for row in one.rows[:5]]
    together = one.read(shown)
    monkeypatch.setattr(conditions.factors, "SEEN_TOGETHER", 2)
    monkeypatch.setattr(one.condition, "_drawn", None)
    chex.assert_trees_all_close(one.read(shown), together, atol=1e-5)


def test_tokens_are_no_more_than_a_pretrained_encoder_has_places_for():
    """Beyond them its states are no numbers."""
    c = phantom.get_config("pixart_text+smoke")
    c.text_encoder.update(kind="bert", path="given", max_length=64)
    condition = conditions.of(from_config_dict(c))
    condition._pretrained = encoder = tiny_bert(c.text_encoder.width, 64)
    assert encoder.limit == 16
    frozen = condition.frozen()
    params, _ = condition.init(jax.random.key(0), frozen)
    inputs = condition.from_requests(frozen, [Request(prompt="a small lesion " * 9)], [0], encoder)
    tokens = condition.tokens(params, frozen, inputs, {"text": jnp.ones(1, bool)})
    assert tokens.tokens_BND.shape[1] == 16 and np.isfinite(tokens.tokens_BND).all()


def test_an_edited_picture_gives_what_nothing_else_is_asked_of(made):
    one = made["factors"]
    image, mask = picture_and_mask(one)
    (other, _), own = picture_and_mask(one, 4), one.read([Request(anatomy_image=image, modality_image=image)])
    changes = [{}, {"anatomy": TEXTS[0]}, {"modality": TEXTS[2]}, {"mask": mask}, {"modality_image": other}]
    changes.append({"prompt": TEXTS[1]})
    told = one.read([Request(**change) for change in changes])
    found = one.read([Request(source=image, **change) for change in changes])
    for channel, kept in (("anatomy", (0, 2, 4)), ("modality", (0, 1, 3))):
        for place in range(len(changes)):
            wanted = own[channel][0] if place in kept else told[channel][place]
            np.testing.assert_allclose(found[channel][place], wanted, atol=1e-4)


def test_the_way_from_one_component_vector_to_another_keeps_its_distance_from_zero():
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(2, 60))
    ends *= 5 / np.linalg.norm(ends, axis=1, keepdims=True)
    way = pipeline.between(ends, np.linspace(0, 1, 5))
    np.testing.assert_allclose(way[[0, -1]], ends, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), 5)
    steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0])
    for last in (ends[0], -ends[0], np.zeros(60)):  # nowhere to go, or through zero, or to it
        way = pipeline.between(np.stack([ends[0], last]), np.linspace(0, 1, 3))
        np.testing.assert_allclose(way[[0, -1]], [ends[0], last], atol=1e-12)
        assert np.isfinite(way).all()
    np.testing.assert_array_equal(pipeline.between(np.stack([ends[0]] * 2), np.array([0.3, 0.7])), [ends[0]] * 2)


def test_a_mask_moves_the_anatomy_and_leaves_the_modality(made):
    one = made["factors"]
    (_, mask), (_, other) = picture_and_mask(one, 3), picture_and_mask(one, 4)
    asked = [Request(prompt=text, mask=m) for text in ("", TEXTS[0]) for m in (b"", mask, other)]
    found = one.read(asked)
    apart = np.abs(found["anatomy"][:, None] - found["anatomy"][None]).max(-1)
    assert apart[~np.eye(len(asked), dtype=bool)].min() > 1e-3  # each of text, mask, both and none says its own
    for rows in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(found["modality"][rows], found["modality"][rows][:1].repeat(3, 0), atol=1e-6)


def test_an_empty_mask_is_not_the_same_as_none(made):
    one = made["factors"]
    empty = to_png(np.zeros((32, 32), np.uint8))
    found = one.read([Request(prompt=TEXTS[0]), Request(prompt=TEXTS[0], mask=empty)])["anatomy"]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_what_is_left_open_is_drawn_with_the_seed(made):
    one = made["factors"]
    for request in (Request(), Request(prompt=TEXTS[0])):
        found = one.read([request] * 3, [1, 2, 1])
        for x in found.values():
            np.testing.assert_array_equal(x[0], x[2])
            assert np.abs(x[0] - x[1]).max() > 0.1
    seeds = one.read([Request()] * 2, [1, 1 + (1 << 32)])  # seeds have 64 bits
    assert all(np.abs(x[0] - x[1]).max() > 0.1 for x in seeds.values())


def test_a_request_does_not_depend_on_those_beside_it(made, monkeypatch):
    """Whatever the batches of the compiled flow, and however many requests there are."""
    one = made["factors"]
    image, mask = picture_and_mask(one)
    asked = [Request(prompt=TEXTS[0]), Request(), Request(mask=mask), Request(anatomy_image=image), Request("x")]
    seeds = [3, 1, 4, 1, 5]
    alone = [one.read([request], [seed]) for request, seed in zip(asked, seeds, strict=True)]
    monkeypatch.setattr(factors, "DRAWN_TOGETHER", 2)
    together = one.read(asked, seeds)
    for channel, x in together.items():
        np.testing.assert_allclose(x, np.concatenate([one[channel] for one in alone]), atol=1e-4)


def test_noise_falls_on_the_components_of_training_alone(made):
    for one in (made["factors"], made["from_text"]):
        batch = one.batch(one.rows)
        plain, noisy, again = (
            one.condition.from_rows(one.frozen, batch, key) for key in (None, *[jax.random.key(0)] * 2)
        )
        chex.assert_trees_all_equal(noisy, again)
        for channel in plain:
            level = getattr(one.config.denoiser, f"{channel}_noise")
            assert np.std(noisy[channel] - plain[channel]) == pytest.approx(level, rel=0.3)
        noise = [(noisy[channel] - plain[channel])[:, :8] for channel in plain]
        assert np.abs(noise[0] - noise[1]).max() > 0.01


def test_the_components_of_the_training_pictures_have_unit_scale(made):
    one = made["factors"]
    inputs = one.condition.from_rows(one.frozen, one.batch(one.rows), None)
    for x in inputs.values():
        assert np.abs(np.mean(x, 0)).max() < 1e-3
        scale = np.std(x, 0, ddof=1)
        assert (np.isclose(scale, 1.0, atol=0.02) | (scale == 0)).all() and scale.any()


def test_the_class_of_a_row_reaches_the_tokens(made):
    one = made["class_label"]
    rows = [{"label": label} for label in ("malignant", "benign", "malignant", "never seen", "")]
    tokens = one.tokens(one.condition.from_rows(one.frozen, one.batch(rows), None))
    parts = np.concatenate([tokens.tokens_BND[:, 0], tokens.style_BD], axis=-1)
    np.testing.assert_array_equal(parts[0], parts[2])
    assert np.abs(parts[0] - parts[1]).max() > 1e-3
    asked = one.tokens(one.read([Request(label=label) for label in ("malignant", "benign")]))
    np.testing.assert_array_equal(asked.tokens_BND, tokens.tokens_BND[:2])
    null = one.tokens(one.condition.from_rows(one.frozen, one.batch(rows[:1]), None), **{"class": False})
    null = np.concatenate([null.tokens_BND[:, 0], null.style_BD], axis=-1)[0]
    np.testing.assert_array_equal(parts[3:], [null, null])
    assert np.abs(parts[:2] - null).max(axis=-1).min() > 1e-3


def test_a_caption_of_no_known_word_and_a_dropped_one_are_one_token(made):
    one = made["text_tokens"]
    inputs = one.read([Request(prompt="..."), Request(prompt="a small lesion"), Request(anatomy="a", modality="b")])
    np.testing.assert_array_equal(one.tokens(inputs).mask_BN.sum(axis=1), [1, 3, 2])
    assert (inputs["text"][0] == -1).all() and (inputs["text"][1, :3] >= 0).all()
    first = jnp.full((1, inputs["text"].shape[1]), -1).at[0, 1].set(0)  # the commonest word has the number 0
    assert one.tokens({"text": first}).mask_BN.tolist()[0][:3] == [0.0, 1.0, 0.0]
    dropped = one.tokens(inputs, text=False)
    assert (dropped.mask_BN[:, 0] == 1).all() and (dropped.mask_BN.sum(axis=1) == 1).all()


def test_pretrained_tokens_are_the_states_of_the_frozen_encoder(made):
    """Each in the light of the others, which pool to the encoder's own embedding; it is no parameter."""
    one = made["pretrained_tokens"]
    assert set(one.params) == {"null", "places", "token"} and set(one.frozen) == {"text_encoder", "basis"}
    texts = ["a small lesion", "two round satellites"]
    ids = one.read([Request(prompt=text) for text in texts])["text"]
    states = np.asarray(one.condition._states(one.frozen, ids))
    pooled = [row[kept].mean(0) for row, kept in zip(states, np.asarray(ids) >= 0, strict=True)]
    np.testing.assert_allclose(pooled, one.encoder(texts), atol=1e-5)
    found, p = one.tokens({"text": ids}).tokens_BND, jax.tree.map(np.asarray, one.params)
    wanted = states @ p["token"]["kernel"] + p["token"]["bias"] + p["places"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", [*TOKENS, "text_heads"])
def test_a_training_row_is_one_of_the_captions_of_a_picture(name):
    config = config_of(name)
    values = {field: np.arange(6).reshape(3, 2) for field in conditions.of(config).worded}
    rows = lambda columns, split: [{"image": to_png(np.full((32, 32, 3), i, np.uint8)), **values} for i in range(2)]
    stage = denoiser.Denoising(types.SimpleNamespace(config=config, rows=rows))
    source = stage.source("train")
    assert len(source) == 6 and values
    examples = [stage.example(source[i]) for i in range(6)]
    assert [int(one["image"].max()) for one in examples] == [0, 0, 0, 1, 1, 1]
    for field in values:
        assert [one[field][:2].tolist() for one in examples] == [[0, 1], [2, 3], [4, 5]] * 2


def test_text_heads_read_each_channel_from_its_own_words(made):
    """And without noise, whatever the key: their scale is their own."""
    one = made["text_heads"]
    batch = one.batch(one.rows[:4])
    tokens = one.tokens(one.condition.from_rows(one.frozen, batch, jax.random.key(0)))
    other = one.tokens(
        one.condition.from_rows(one.frozen, batch | {"modality_text": batch["anatomy_text"][::-1]}, None)
    )
    np.testing.assert_array_equal(tokens.tokens_BND[:, 0], other.tokens_BND[:, 0])
    np.testing.assert_array_equal(tokens.spatial_BggD, other.spatial_BggD)
    assert np.abs(tokens.tokens_BND[:, 1] - other.tokens_BND[:, 1]).max() > 1e-4
    assert np.abs(tokens.spatial_BggD[0] - tokens.spatial_BggD[1]).max() > 1e-4


def test_one_channel_tells_both_factors_by_one_token(made):
    one = made["one_channel"]
    inputs = one.condition.from_rows(one.frozen, one.batch(one.rows[:2]), None)
    tokens = one.tokens(inputs)
    for name in CHANNELS:
        mixed = one.tokens({**inputs, name: inputs[name][::-1]})
        assert np.abs(tokens.tokens_BND - mixed.tokens_BND).max() > 1e-3
        assert np.abs(tokens.style_BD - mixed.style_BD).max() > 1e-3
        assert (np.abs(tokens.spatial_BggD - mixed.spatial_BggD).max() > 1e-3) == (name == "anatomy")
    dropped = one.tokens(inputs, factors=False)
    np.testing.assert_array_equal(dropped.style_BD[0], dropped.style_BD[1])


@pytest.mark.parametrize(
    "request_",
    [
        Request(),
        Request(prompt="a lesion", mask=b"png"),
        Request(prompt="a lesion", anatomy_image=b"png"),
        Request(prompt="a lesion", modality_image=b"png"),
        Request(prompt="a lesion", source=b"png"),
    ],
)
def test_text_tokens_take_words_and_nothing_else(made, request_):
    with pytest.raises(ConfigError, match="'text_tokens' takes words and nothing else: give a prompt"):
        made["text_tokens"].read([Request(prompt="a lesion"), request_])


def test_an_unknown_class_is_refused_in_one_sentence(made):
    with pytest.raises(ConfigError, match=r"class 'mole' is not .*: choose one of 'benign', 'malignant'$") as caught:
        made["class_label"].read([Request(label="benign"), Request(label="mole")])
    assert "\n" not in str(caught.value)


def test_long_class_names_and_those_of_equal_beginning_are_told_by_their_beginning():
    condition = conditions.of(config_of("class_label"))
    long = "ü" * 40
    frozen = {"basis": condition.fit(lambda columns, split: [{"label": long + end} for end in ("", "x", "y")])}
    assert len(frozen["basis"]["classes"]) == 1
    read = lambda label: condition.from_requests(frozen, [Request(label=label)], [0], np.asarray)
    read(long + "x")
    with pytest.raises(ConfigError, match="class 'other'"):
        read("other")


def test_a_dataset_without_classes_is_refused():
    condition = conditions.of(config_of("class_label"))
    with pytest.raises(ConfigError, match="the dataset names no classes"):
        condition.fit(lambda columns, split: [{"label": ""}])


NEEDS = {
    "factors": ((), ("prior", "disentangler"), ("factors",)),
    "from_text": (("disentangler",), ("prior", "disentangler"), ("text",)),
    "published": (("disentangler",), (), ("text",)),
    "class_label": ((), (), ("pictures",)),
    "text_tokens": ((), (), ("tokens",)),
    "pretrained_tokens": ((), (), ("tokens",)),
    "text_heads": ((), (), ("wordings",)),
    "one_channel": ((), ("prior", "disentangler"), ("factors",)),
}


@CONDITIONS
def test_conditions_read_the_columns_and_stages_that_they_declare(made, name):
    """The default trains on pictures alone: no stage 2, and so nothing of texts, decides it."""
    one = made[name]
    assert (one.condition.needs, one.condition.request_needs, one.condition.columns) == NEEDS[name]
    assert set(one.condition.columns) <= set(denoiser.columns(one.config))
    assert one.condition.reads_text == (name != "class_label")
    assert ("basis" in one.frozen) and (bool(one.frozen["basis"]) == bool(one.condition.fit_columns))
    assert set(one.condition.fit_keys) <= set(one.config.flat())


@pytest.mark.parametrize(
    ("condition", "key", "value", "message"),
    [
        ("factors", "sample.guidance", {"anatomy": 2.0}, "names anatomy, but .* 'factors' are anatomy, modality: set"),
        ("factors", "denoiser.dropout", {"class": 0.1}, "names class, but"),
        ("published", "denoiser.dropout", {}, "names nothing, but"),
        (
            "one_channel",
            "sample.guidance",
            {"anatomy": 2.0, "modality": 2.0},
            "names .* of condition 'factors' are factors",
        ),
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
