import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax import losses
from vgjax.models.disentangler import TextDisentangler

BATCH, D, K, Z = 6, 20, 12, 5


@pytest.fixture(scope="module")
def model() -> TextDisentangler:
    return TextDisentangler(anatomy_dim=K, modality_dim=Z, hidden_dim=32)


@pytest.fixture(scope="module")
def text() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (BATCH, D))


@pytest.fixture(scope="module")
def variables(model: TextDisentangler, text: jax.Array) -> dict:
    return model.init(jax.random.key(1), text, train=False)


def test_shapes(model: TextDisentangler, variables: dict, text: jax.Array) -> None:
    anatomy, modality, reconstruction = model.apply(variables, text, train=False)
    chex.assert_shape([anatomy, modality, reconstruction], [(BATCH, K), (BATCH, Z), (BATCH, D)])


def test_dropout_acts_in_training_only_and_spares_the_decoder(
    model: TextDisentangler, variables: dict, text: jax.Array
) -> None:
    trained = [model.apply(variables, text, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1)]
    assert not np.allclose(trained[0][0], trained[1][0])
    assert not np.allclose(trained[0][1], trained[1][1])
    evaluated = [model.apply(variables, text, train=False) for _ in range(2)]
    chex.assert_trees_all_equal(*evaluated)

    # The decoder, fed what the heads gave in training, rebuilds the same embedding without dropout.
    decoder = variables["params"]["decoder"]
    hidden = jnp.concatenate(trained[0][:2], -1) @ decoder["hidden"]["kernel"] + decoder["hidden"]["bias"][None]
    rebuilt = jax.nn.relu(hidden) @ decoder["out"]["kernel"] + decoder["out"]["bias"][None]
    np.testing.assert_allclose(rebuilt, trained[0][2], atol=1e-5)


def test_dropout_rate_is_a_tenth() -> None:
    model = TextDisentangler(anatomy_dim=1, modality_dim=1, hidden_dim=20_000)
    text = jnp.ones((1, 1))
    variables = model.init(jax.random.key(0), text, train=False)
    ones = jax.tree.map(jnp.ones_like, variables)
    # Every hidden unit is 2 and survives scaled by 1 / 0.9; the output adds its bias of 1.
    anatomy, _, _ = model.apply(ones, text, train=True, rngs={"dropout": jax.random.key(1)})
    kept = (anatomy[0, 0] - 1.0) * 0.9 / 2.0 / 20_000
    np.testing.assert_allclose(kept, 0.9, atol=0.01)


def test_word_dropout_hides_the_same_words_from_both_heads() -> None:
    model = TextDisentangler(anatomy_dim=1, modality_dim=1, hidden_dim=1, dropout_rate=0.0, word_dropout_rate=0.25)
    text = 2.0 ** jnp.arange(12.0)[None]  # the sum tells which entries are left
    ones = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), text, train=False))
    anatomy, modality, _ = model.apply(ones, text, train=True, rngs={"dropout": jax.random.key(1)})
    left = (anatomy[0, 0] - 2.0) * 0.75
    np.testing.assert_allclose(anatomy, modality)
    assert 0 < left < text.sum() and abs(left - jnp.round(left)) < 1e-2
    whole = model.apply(ones, text, train=False)[0]
    np.testing.assert_allclose(whole[0, 0] - 2.0, text.sum())


def test_cosine_alignment_sees_direction_only() -> None:
    target = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    prediction = jnp.array([[5.0, 0.0], [0.0, 2.0], [-0.1, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(losses.cosine_alignment(prediction, target), [0.0, 1.0, 2.0, 0.4], atol=1e-6)


def test_cosine_alignment_has_a_finite_gradient_at_zero() -> None:
    gradient = jax.grad(lambda x: losses.cosine_alignment(x, jnp.ones((1, 3))).sum())(jnp.zeros((1, 3)))
    assert jnp.isfinite(gradient).all()


def test_terms_reach_their_heads_and_leave_the_targets_alone(
    model: TextDisentangler, variables: dict, text: jax.Array
) -> None:
    targets = jax.random.normal(jax.random.key(2), (BATCH, K)), jax.random.normal(jax.random.key(3), (BATCH, Z))

    def term(params: dict, targets: tuple[jax.Array, jax.Array], name: str) -> jax.Array:
        outputs = model.apply({"params": params}, text, train=False)
        terms = losses.text_terms(outputs, targets, text, "cosine")
        chex.assert_shape(list(terms.values()), (BATCH,))
        return sum(terms[part].mean() for part in name.split("+"))

    def moves(tree: chex.ArrayTree) -> bool:
        return any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(tree))

    align, to_targets = jax.grad(term, argnums=(0, 1))(variables["params"], targets, "anatomy+modality")
    assert not moves(to_targets)
    assert {head: moves(tree) for head, tree in align.items()} == {
        "anatomy_encoder": True,
        "modality_encoder": True,
        "decoder": False,
    }
    reconstruction = jax.grad(term)(variables["params"], targets, "rebuild")
    assert all(moves(tree) for tree in reconstruction.values())
