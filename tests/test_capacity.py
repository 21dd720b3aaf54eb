"""Memory and disk that a run needs, told before any work; what fits is never refused."""

import importlib
import shutil
import time

import jax
import jax.numpy as jnp
import pytest

from tests.in_process import refused
from tests.test_finite import Toy, fit
from vgjax import artefacts, build, capacity, parallel, pipeline, train
from vgjax import config as configs
from vgjax.config import Config, ConfigError
from vgjax.context import Run
from vgjax.store import Store
from vgjax.types import Tokens

COUNTS = {"train": 8000, "validation": 500, "test": 2000}


def open_run(folder, name="phantom", variants="", **changes) -> Run:
    """A run whose data nobody looks at."""
    c = importlib.import_module(f"configs.{name}").get_config(variants)
    c.autoencoder.path = c.autoencoder.path or "."
    c.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    config = configs.build(Config, c.to_dict())
    return Run(
        config, folder / "run", parallel.make_mesh(config.mesh), Store(folder / "store"), artefacts.producers(config)
    )


@pytest.mark.parametrize("name", ["phantom", "ham10000", "mimic"])
def test_what_is_shipped_fits_this_machine(tmp_path, name):
    capacity.check(open_run(tmp_path, name), COUNTS)


@pytest.mark.parametrize(
    "variants", ["reference", "class_label", "pixart_text", "no_alignment", "one_channel", "medart"]
)
def test_every_variant_fits_this_machine(tmp_path, variants):
    capacity.check(open_run(tmp_path, variants=variants), COUNTS)


@pytest.mark.parametrize("variants", ["cpu", "cpu+pixels"])
def test_real_pictures_fit_this_machine(tmp_path, variants):
    capacity.check(open_run(tmp_path, "kvasir_seg", variants), COUNTS)


LARGEST = 2**31 - 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data.image_size": 4096}, "config key 'prior.train.batch_size' is 8, with these sizes"),
        ({"prior.train.batch_size": 1 << 30}, "config key 'prior.train.batch_size' is 1073741824"),
        ({"disentangler.train.batch_size": 1 << 30}, "config key 'disentangler.train.batch_size' is 1073741824"),
        ({"denoiser.train.batch_size": 1 << 30}, "config key 'denoiser.train.batch_size' is 1073741824"),
        ({"sample.batch_size": 1 << 30}, "config key 'sample.batch_size' is 1073741824"),
        ({"prior.widths": (10**5, 10**5)}, "'prior'"),
        ({"prior.modality_widths": (1 << 30, 8)}, "the sizes in config group 'prior'"),
        ({"prior.decoder_widths": (1 << 30, 8)}, "the sizes in config group 'prior'"),
        ({"prior.segmentor_width": 1 << 30}, "'prior'"),
        ({"prior.anatomy_factors": LARGEST}, "the sizes in config group 'prior'"),
        ({"prior.modality_factors": LARGEST}, "the sizes in config group 'prior'"),
        ({"disentangler.flow_width": {"anatomy": LARGEST, "modality": 3}}, "the sizes in config group 'disentangler'"),
        ({"disentangler.method": "regression", "disentangler.hidden": LARGEST}, "config group 'disentangler'"),
        ({"text_encoder.width": LARGEST}, "'disentangler"),
        ({"denoiser.width": 2**31 - 64}, "config key 'denoiser.train.batch_size' is 32, with these sizes"),
        ({"denoiser.token_width": LARGEST}, "the sizes in config group 'denoiser'"),
        ({"denoiser.hffm_hidden": LARGEST}, "the sizes in config group 'denoiser'"),
        ({"denoiser.refine": LARGEST}, "the sizes in config group 'denoiser'"),
        ({"denoiser.mlp_ratio": 1e300}, "'denoiser'"),
        ({"evaluate.resamples": LARGEST, "denoiser.width": 4}, ""),
    ],
)
def test_what_no_memory_holds_is_refused_with_the_numbers(tmp_path, monkeypatch, changes, match):
    monkeypatch.setattr(capacity, "memory_bytes", lambda: 16 * 10**9)
    with pytest.raises(ConfigError, match=r"this needs .* GB of memory and there are 16 GB") as caught:
        capacity.check(open_run(tmp_path, **{key.replace(".", "__"): value for key, value in changes.items()}), COUNTS)
    assert match in str(caught.value)


def test_little_memory_is_told_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "memory_bytes", lambda: 40 * 10**6)
    run = open_run(tmp_path, denoiser__train__batch_size=8)
    with pytest.raises(
        ConfigError, match=r"config group 'disentangler': this needs 0\.0427 GB of memory and there are 0"
    ):
        capacity.check(run, COUNTS)


def test_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    run = open_run(tmp_path, data__image_size=128)
    with pytest.raises(
        ConfigError, match=r"10500 pictures .* 128: this needs 0\.00516 GB of disk at .* and there are 0\.001 GB"
    ):
        capacity.check(run, COUNTS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    capacity.check(run, COUNTS)
    monkeypatch.setattr(capacity, "memory_bytes", lambda: 10**15)
    with pytest.raises(ConfigError, match="latents of 20500 pictures"):
        capacity.check(open_run(tmp_path, "kvasir_seg", "cpu"), {"train": 20000, "validation": 500})


def test_what_is_half_written_counts_as_room(tmp_path, monkeypatch):
    """A stopped preparation that used up the disk can go on."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    part = tmp_path / "store" / "pictures-0123.part" / "parts"
    part.mkdir(parents=True)
    (part / "x.msgpack").write_bytes(bytes(6 * 10**6))
    capacity.check(open_run(tmp_path, data__image_size=128), COUNTS)


def test_it_is_asked_before_anything_is_made(tmp_path):
    arguments = ["--config=configs/phantom.py:smoke", f"--workdir={tmp_path}/run"]
    for mode in ("prepare", "train", "run"):
        refused(
            tmp_path,
            "of memory and there are",
            *arguments,
            f"--mode={mode}",
            "--config.prior.train.batch_size=1073741824",
        )


def test_it_costs_little(tmp_path):
    run = open_run(tmp_path)
    capacity.check(run, COUNTS)
    began = time.process_time()
    capacity.check(run, COUNTS)
    assert time.process_time() - began < 3.0  # a fifth of a second; the machine may be busy


def test_activations_are_a_lower_bound(tmp_path):
    """Of the transformer's gradient, what XLA itself sets aside is more."""
    run = open_run(tmp_path, variants="smoke", denoiser__depth=1)
    c, key = run.config, jax.random.key(0)
    told = [need for what, need in capacity._memory(run) if what.startswith("config key 'denoiser.train.batch_size'")]
    batch = c.denoiser.train.batch_size
    x, t = jnp.zeros((batch, *build.latent_shape(c))), jnp.zeros(batch)
    tokens = Tokens(jnp.zeros((batch, 2, c.denoiser.token_width)), jnp.ones((batch, 2)))
    dit, process = build.dit(c), build.process(c)

    def loss(params):
        model = build.Model(dit, params)
        return pipeline.diffusion_errors(model, process, x, tokens, key, key).mean()

    shapes = jax.eval_shape(lambda: dit.init(key, x, t, tokens))
    temporary = jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis().temp_size_in_bytes
    assert 0.03 * temporary < sum(told) < temporary


@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_that_xla_needs_more_for_is_refused_before_it_runs(tmp_path, monkeypatch, devices):
    """By what the compiled step takes on all devices: arguments, results that take no argument's place, temporaries."""
    stage, ran = Toy(), []
    stage.small, stage.training = devices == 1, stage.training.model_copy(update={"batch_size": 8})
    step = parallel.few_in_flight
    monkeypatch.setattr(
        parallel, "few_in_flight", lambda fitting, mesh: step(lambda *a: ran.append(1) or fitting(*a), mesh)
    )
    state = 3 * 3001 * 4  # weights and two moments
    monkeypatch.setattr(parallel, "memory_bytes", lambda: devices * state)
    told = (
        r"^config key 'prior\.train\.batch_size': a step of this size needs .* GB of memory and there are .*: lower it$"
    )
    with pytest.raises(ConfigError, match=told):
        fit(stage, tmp_path)
    assert not train.read_log(tmp_path / train.LOG) and len(ran) == 1
    monkeypatch.setattr(parallel, "memory_bytes", lambda: 10 * devices * state)
    fit(stage, tmp_path)


def test_a_step_is_compiled_once_for_each_loss():
    traced = []
    fitting = parallel.fitting(jax.jit(lambda n, x: traced.append(n) or x * n, static_argnums=0), "", 1)
    assert [float(fitting(n, jnp.float32(3))) for n in (1, 2, 2, 1)] == [3, 6, 6, 3] and traced == [1, 2]
