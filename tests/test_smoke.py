"""The whole pipeline, tiny: end to end on eight devices, resumed after a kill, deaf to the ground truth."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from configs import phantom
from vgjax import build, parallel, pipeline, train
from vgjax import run as runs
from vgjax.sample import Sampler
from vgjax.schema import Mesh
from vgjax.stages import denoiser
from vgjax.types import Request


def small(**changes):
    c = phantom.get_config("smoke")
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = runs.open_run(small(), str(tmp_path_factory.mktemp("smoke") / "run"))
    runs.run_all(run)
    return run


def fingerprints(run):
    return {
        s: json.loads(run.export(s).with_name("done.json").read_text())["fingerprint"]
        for s in ("prior", "disentangler", "denoiser")
    }


def test_report_and_metrics_are_written(finished):
    values = json.loads((finished.workdir / "metrics.json").read_text())
    assert 0.0 <= values["control/accuracy_mean"] <= 1.0
    assert values["control/n"] == 16
    assert values["control_real/colour"] > 0.9
    assert {f"fingerprint/{s}": f for s, f in fingerprints(finished).items()}.items() <= values.items()
    assert all(values[f"wall_s/{s}"] > 0 for s in ("prior", "disentangler", "denoiser", "evaluate"))
    assert values["peak_rss_mb"] > 100
    page = (finished.workdir / "report.html").read_text()
    assert "perceptual term of stage 1 is off" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_same_command_again_does_nothing(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*") if p.is_file() and p.name != "report.html"}
    runs.run_all(finished)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_sampling_is_reproducible(finished):
    paths = [runs.sample.sample_prompt(finished, "a small round lesion in the upper left") for _ in range(2)]
    assert [p.suffix for p in paths[0]] == [".png", ".png", ".json"]
    first = [p.read_bytes() for p in paths[0]]
    runs.draw(finished, "a small round lesion in the upper left")
    assert [p.read_bytes() for p in paths[0]] == first
    settings = json.loads(paths[0][-1].read_text())
    assert settings["seeds"] == [0, 1]
    assert first[0] != first[1]


class Killed(Exception):
    pass


@pytest.mark.parametrize("stage", [pytest.param("prior", marks=pytest.mark.slow), "disentangler", "denoiser"])
def test_a_killed_stage_ends_as_an_uninterrupted_one(finished, tmp_path, monkeypatch, stage):
    """Killed between two checkpoints, started again: the same bytes."""
    shutil.copytree(finished.workdir, tmp_path / "run")
    run = runs.open_run(small(), str(tmp_path / "run"))
    shutil.rmtree(run.export(stage).parent)
    (run.workdir / "logs" / f"{stage}.jsonl").unlink()
    log_step = train.Log.step

    def killing(self, step, terms, waited):
        if step == 5:
            raise Killed
        log_step(self, step, terms, waited)

    monkeypatch.setattr(train.Log, "step", killing)
    with pytest.raises(Killed):
        runs.train_stages(run)
    monkeypatch.setattr(train.Log, "step", log_step)
    assert not run.export(stage).exists()
    runs.train_stages(run)
    assert fingerprints(run) == fingerprints(finished)
    steps = [row["step"] for row in train.read_log(run.workdir / "logs" / f"{stage}.jsonl") if row["kind"] == "train"]
    assert steps == sorted(set(steps))  # nothing logged twice


def test_training_never_sees_factors_or_labels(finished, tmp_path):
    run = runs.open_run(small(**{"data.noise_factors": True}), str(tmp_path / "run"))
    runs.train_stages(run)
    assert fingerprints(run) == fingerprints(finished)


def test_one_device_and_eight_agree(finished):
    """The denoiser stage's loss and gradients on a (2, 2, 2) mesh and on one device, from trained weights."""
    import jax

    stage = denoiser.Denoising(finished)
    params = finished.variables("denoiser")["params"]
    source = stage.source("train")
    rows = [stage.example(source[i]) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    frozen = stage.frozen
    total = lambda params, batch: stage.loss(params, {}, frozen, batch, jax.random.key(0))[0]["denoise"].mean()
    wanted = jax.device_get(jax.jit(jax.value_and_grad(total))(params, batch))
    mesh = parallel.make_mesh(Mesh(2, 2, 2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parallel.shardings(params, mesh))
        got = jax.device_get(jax.jit(jax.value_and_grad(total))(placed, parallel.to_global(batch, mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), got, wanted)


def test_every_part_of_stage_three_gets_gradient(finished):
    import jax

    stage = denoiser.Denoising(finished)
    source = stage.source("train")
    rows = [stage.example(source[i]) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    params = finished.variables("denoiser")["params"]
    # So few validation pictures confirm no direction of the anatomy; open them all.
    basis = jax.tree.map(lambda a: np.random.default_rng(0).normal(size=a.shape).astype(a.dtype), stage.frozen["basis"])
    frozen = {**stage.frozen, "basis": basis}
    grads = jax.jit(jax.grad(lambda p: stage.loss(p, {}, frozen, batch, jax.random.key(0))[0]["denoise"].mean()))(
        params
    )
    silent = [
        parallel.path_name(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(g).max() > 0 and "to_k/bias" not in parallel.path_name(path)  # a key bias cancels in the softmax
    ]
    assert silent == []


def test_contracts(finished):
    """Shapes and scale at every contract of pipeline.py, on the trained run."""
    import chex
    import jax.numpy as jnp

    config = finished.config
    prior = build.Model(build.prior(config), finished.variables("prior"))
    image = jnp.zeros((3, 32, 32, 3))
    factors = pipeline.image_factors(prior, image)
    grid, k, z = config.prior.grid, config.prior.anatomy_factors + 1, config.prior.modality_factors
    chex.assert_shape(factors.anatomy_BggK, (3, grid, grid, k))
    chex.assert_shape(factors.modality_BZ, (3, z))
    chex.assert_shape(factors.pooled(), (3, k))
    disentangler = build.Model(build.disentangler(config), finished.variables("disentangler"))
    predicted = pipeline.text_factors(disentangler, jnp.ones((3, config.text_encoder.width)), grid)
    chex.assert_trees_all_equal_shapes(predicted, factors)
    trained = denoiser.Trained(finished)
    inputs = trained.condition.from_requests(trained.variables["frozen"], [Request(prompt="a lesion")] * 3)
    keep = dict.fromkeys(trained.condition.channels, jnp.ones(3, bool))
    tokens = trained.to_tokens(trained.variables, inputs, keep)
    chex.assert_shape(tokens.tokens_BND, (3, 2, config.denoiser.token_width))
    with pytest.raises(AssertionError):
        pipeline.image_factors(prior, image[0])


def test_another_guidance_weight_recompiles_nothing(finished):
    drawer = Sampler(finished)
    inputs = drawer.inputs([Request(prompt="a large lobed lesion")] * 2)
    plain = drawer(inputs, [0, 1])
    strong = drawer(inputs, [0, 1], {"anatomy": 6.0, "modality": 6.0})
    assert (plain != strong).any() and drawer.compilations == 1
    with pytest.raises(ValueError, match=r"keep \[1\] channels"):
        drawer(inputs, [0, 1], {"anatomy": 3.0, "modality": 1.0})


def test_per_image_scaling_fills_the_range():
    rng = np.random.default_rng(0)
    pictures = np.stack([rng.integers(90, 140, (8, 8, 3)), np.full((8, 8, 3), 7)]).astype(np.uint8)
    scaled = np.asarray(pipeline.to_unit_range(pictures, "per_image"))
    assert (scaled[0].min(), scaled[0].max()) == (-1.0, 1.0)
    assert np.isfinite(scaled[1]).all()
    kept = np.asarray(pipeline.to_unit_range(pictures, "dataset"))
    np.testing.assert_allclose(kept, pictures / 127.5 - 1.0, atol=1e-6)
