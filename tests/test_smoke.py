"""The whole pipeline, tiny: end to end on eight devices, resumed after a kill, deaf to the ground truth."""

import json
import shutil

import numpy as np
import pytest

from configs import phantom
from vgjax import build, checkpoint, parallel, pipeline, stages, train
from vgjax import run as runs
from vgjax.config import Mesh
from vgjax.sample import Sampler
from vgjax.stages import denoiser
from vgjax.types import Request

STAGES = ("prior", "disentangler", "denoiser")


def small(**changes):
    c = phantom.get_config("smoke")
    # One stage with the schedule that needs the validation scores.
    c.update_from_flattened_dict({"prior.train.schedule": "plateau", **changes})
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = runs.open_run(small(), str(tmp_path_factory.mktemp("smoke") / "run"))
    runs.run_all(run)
    return run


def fingerprints(run):
    return {s.name: run.artefact(s.name).manifest["info"]["fingerprint"] for s in stages.plan(run.config)}


def test_report_and_metrics_are_written(finished):
    values = json.loads((finished.workdir / "metrics.json").read_text())
    assert 0.0 <= values["control/accuracy_mean"] <= 1.0
    assert values["estimates"]["control/accuracy/colour"]["n"] <= 16
    assert values["control_real/colour"] > 0.9
    assert {f"fingerprint/{s}": f for s, f in fingerprints(finished).items()}.items() <= values.items()
    assert all(values[f"wall_s/{s}"] > 0 for s in STAGES)
    assert values["peak_rss_mb"] > 100
    assert values["artefacts"] == {name: finished.artefact(name).digest for name in finished.producers}
    readings = json.loads(finished.artefact("evaluation").path("readings.json").read_text())
    assert {name: len(rows) for name, rows in readings.items()} == {"captions": 16, "swap": 20, "real": 16}
    page = (finished.workdir / "report.html").read_text()
    assert "perceptual term of stage 1 is off" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_same_command_again_makes_nothing(finished):
    kept = lambda: {p: p.stat().st_mtime_ns for p in finished.store.root.rglob("*") if p.is_file()}
    before = kept()
    runs.run_all(runs.open_run(small(), str(finished.workdir)))
    assert kept() == before


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
    for artefact in finished.store.root.iterdir():
        if artefact.is_dir() and not artefact.name.startswith(("drawn", "evaluation", stage)):
            shutil.copytree(artefact, tmp_path / "store" / artefact.name)
    run = runs.open_run(small(), str(tmp_path / "run"))
    log_step = train.Log.step

    def killing(self, step, terms, waited):
        if step == 5:
            raise Killed
        log_step(self, step, terms, waited)

    monkeypatch.setattr(train.Log, "step", killing)
    with pytest.raises(Killed):
        runs.train(run)
    monkeypatch.setattr(train.Log, "step", log_step)
    assert not run.find(stage)
    states = {name: state for name, state, _ in run.store.status([run.recipe(stage)])}
    assert set(states.values()) == {"unfinished"}
    noted, note = [], train.after_validation
    monkeypatch.setattr(train, "after_validation", lambda state, score: noted.append(score) or note(state, score))
    runs.train(run)
    assert bool(noted) == (stage == "prior")  # of the stages, the one with the schedule that needs validation scores
    assert fingerprints(run) == fingerprints(finished)
    rows = train.read_log(run.artefact(stage).folder / train.LOG)
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == sorted(set(steps))  # nothing logged twice


def test_training_never_sees_factors_or_labels(finished, tmp_path):
    run = runs.open_run(small(**{"data.noise_factors": True}), str(tmp_path / "run"))
    runs.train(run)
    assert fingerprints(run) == fingerprints(finished)


def test_one_device_and_eight_agree(finished):
    """The denoiser stage's loss and gradients on a (2, 2, 2) mesh and on one device, from trained weights."""
    import jax

    stage = denoiser.Denoising(finished.context)
    params = finished.context.variables("denoiser")["params"]
    source = stage.source("train")
    rows = [stage.example(source[i]) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    frozen = stage.frozen
    total = lambda params, batch: stage.loss(params, {}, frozen, batch, jax.random.key(0))[0]["denoise"].mean()
    wanted = jax.device_get(jax.jit(jax.value_and_grad(total))(params, batch))
    mesh = parallel.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parallel.shardings(params, mesh))
        got = jax.device_get(jax.jit(jax.value_and_grad(total))(placed, parallel.to_global(batch, mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), got, wanted)


def test_every_part_of_stage_three_gets_gradient(finished):
    import jax

    stage = denoiser.Denoising(finished.context)
    source = stage.source("train")
    rows = [stage.example(source[i]) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    params = finished.context.variables("denoiser")["params"]
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
    prior = build.Model(build.prior(config), finished.context.variables("prior"))
    image = jnp.zeros((3, 32, 32, 3))
    stats = checkpoint.load_export(finished.artefact("factors").path("statistics.safetensors"))
    factors = pipeline.image_factors(prior, stats, image)
    grid, k, z = config.prior.grid, config.prior.anatomy_factors + 1, config.prior.modality_factors
    chex.assert_shape(factors.anatomy_BggK, (3, grid, grid, k))
    chex.assert_shape(factors.modality_BZ, (3, z))
    chex.assert_shape(factors.pooled(), (3, k))
    disentangler = build.Model(build.disentangler(config), finished.context.variables("disentangler"))
    predicted = pipeline.text_factors(disentangler, jnp.ones((3, config.text_encoder.width)), grid)
    chex.assert_trees_all_equal_shapes(predicted, factors)
    trained = denoiser.Trained(finished.context)
    inputs = trained.condition.from_requests(trained.variables["frozen"], [Request(prompt="a lesion")] * 3)
    keep = dict.fromkeys(trained.condition.channels, jnp.ones(3, bool))
    tokens = trained.to_tokens(trained.variables, inputs, keep)
    chex.assert_shape(tokens.tokens_BND, (3, 2, config.denoiser.token_width))
    with pytest.raises(AssertionError):
        pipeline.image_factors(prior, stats, image[0])


def test_another_guidance_weight_recompiles_nothing(finished):
    drawer = Sampler(finished.context)
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
