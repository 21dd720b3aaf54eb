"""One device and a 2 x 2 x 2 mesh must agree, in loss and in every gradient."""

import os
import subprocess
import sys
import types
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.test_finite import Toy, fit
from vgjax import parallel, train
from vgjax.config import ConfigError, Mesh, Training
from vgjax.models.dit import DiT
from vgjax.stages.denoiser import Denoising
from vgjax.stages.disentangler import Alignment
from vgjax.stages.text_to_factors import TextToFactors
from vgjax.types import Tokens

REPO = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("shape", "wanted"), [((-1, 1, 1), (8, 1, 1)), ((2, 2, 2), (2, 2, 2)), ((-1, 2, 2), (2, 2, 2))]
)
def test_mesh_takes_all_devices(shape, wanted):
    assert tuple(parallel.make_mesh(Mesh(**dict(zip(parallel.AXES, shape, strict=True)))).shape.values()) == wanted


@pytest.mark.parametrize("shape", [(3, 1, 1), (-1, 3, 1), (1, 1, 1), (-1, 16, 1)])
def test_a_mesh_that_does_not_fit_is_refused(shape):
    with pytest.raises(ConfigError, match=r"there are 8.*mesh\.data=-1"):
        parallel.make_mesh(Mesh(**dict(zip(parallel.AXES, shape, strict=True))))


def test_a_small_stage_is_trained_on_one_device_unless_others_must_take_part(monkeypatch):
    mesh = parallel.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    alone = parallel.mesh_of(mesh, True)
    assert parallel.mesh_of(mesh, False) is mesh
    assert alone.axis_names == mesh.axis_names and alone.devices.ravel().tolist() == jax.devices()[:1]
    assert parallel.to_global({"x": np.zeros(3)}, alone)["x"].devices() == {jax.devices()[0]}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert parallel.mesh_of(mesh, True) is mesh


@pytest.mark.parametrize(("small", "devices"), [(True, 1), (False, 8)])
def test_stages_spread_over_devices_but_for_small_ones(tmp_path, monkeypatch, small, devices):
    found, stage = [], Toy()
    monkeypatch.setattr(parallel, "few_in_flight", lambda step, mesh: found.append(mesh.size) or step)
    stage.small, stage.training = small, stage.training.model_copy(update={"batch_size": 8})
    fit(stage, tmp_path)
    assert found == [devices]
    assert TextToFactors.small and Alignment.small and not Denoising.small


def test_batches_must_divide():
    mesh = parallel.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    parallel.check_batch(mesh, "sample.batch_size", 12)
    with pytest.raises(ConfigError, match=r"sample\.batch_size.*multiple of 4"):
        parallel.check_batch(mesh, "sample.batch_size", 6)


def test_rules_shard_what_they_name():
    mesh = parallel.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    tree = {
        "blocks": {"attn1": {"to_q": {"kernel": np.zeros((2, 8, 8))}}, "ff_out": {"kernel": np.zeros((2, 7, 8))}},
        "adaln": {"kernel": np.zeros((8, 48))},
        "other": np.zeros(()),
    }
    places = parallel.shardings(tree, mesh)
    assert places["blocks"]["attn1"]["to_q"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert places["blocks"]["ff_out"]["kernel"].spec == PartitionSpec(None, None, "fsdp")  # 7 does not divide by 2
    assert "tensor" not in places["adaln"]["kernel"].spec
    assert places["other"].spec == PartitionSpec()


def test_transformer_gradients_agree_on_a_three_axis_mesh():
    model = DiT(width=16, depth=2, heads=2, patch=2, out_channels=3)
    keys = jax.random.split(jax.random.key(0), 6)
    tokens = Tokens(
        tokens_BND=jax.random.normal(keys[0], (8, 2, 12)),
        mask_BN=jnp.ones((8, 2)),
        spatial_BggD=jax.random.normal(keys[1], (8, 2, 2, 16)),
        style_BD=jax.random.normal(keys[2], (8, 16)),
    )
    batch = {"x": jax.random.normal(keys[3], (8, 8, 8, 3)), "t": jnp.linspace(0, 999, 8), "tokens": tokens}
    shapes = jax.eval_shape(model.init, keys[4], batch["x"], batch["t"], tokens)
    leaves, tree = jax.tree.flatten(shapes)
    params = jax.tree.unflatten(
        tree,
        [
            0.3 * jax.random.normal(k, a.shape)
            for k, a in zip(jax.random.split(keys[5], len(leaves)), leaves, strict=True)
        ],
    )

    def loss(params, batch):
        return jnp.square(model.apply(params, batch["x"], batch["t"], batch["tokens"]) - batch["x"]).mean()

    wanted = jax.jit(jax.value_and_grad(loss))(params, batch)
    mesh = parallel.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    place = jax.sharding.NamedSharding(mesh, parallel.BATCH)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, parallel.shardings(params, mesh))
        got = jax.jit(jax.value_and_grad(loss))(sharded, jax.device_put(batch, place))
    assert "tensor" in str(sharded["params"]["blocks"]["ff_in"]["kernel"].sharding.spec)
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(wanted), atol=1e-5, rtol=1e-4)


class Result:
    """What a step returns, writing down when it is waited for."""

    def __init__(self, name: str, events: list[str]):
        self._name, self._events = name, events

    def block_until_ready(self):
        self._events.append(f"wait {self._name}")


def test_few_steps_are_in_flight_where_devices_share_threads():
    def events(devices: int) -> list[str]:
        seen: list[str] = []

        def step(number: int) -> tuple[int, Result]:
            seen.append(f"call {number}")
            return number + 1, Result(str(number), seen)

        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1, 1), parallel.AXES)
        bounded, number = parallel.few_in_flight(step, mesh), 0
        for _ in range(4):
            number, _ = bounded(number)
        return seen

    calls = [f"call {number}" for number in range(4)]
    assert events(1) == calls
    one_device_each = jax.default_backend() != "cpu"
    assert events(2) == (calls if one_device_each else [*calls[:2], "wait 0", calls[2], "wait 1", calls[3]])


@pytest.mark.slow
def test_training_outlasts_a_busy_machine():
    """Without the bound XLA's collectives stop within seconds, and end the process after 40."""
    command = [sys.executable, "benchmarks/collectives.py", "20", "4"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ran = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert int(ran.stdout.split()[0]) > 0


def test_gather_gives_whole_arrays_of_sharded_ones():
    mesh = parallel.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    rows = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    split = parallel.to_global({"x": rows}, mesh)
    assert not split["x"].is_fully_replicated
    gathered = parallel.gather(split)
    assert isinstance(gathered["x"], np.ndarray)
    np.testing.assert_array_equal(gathered["x"], rows)


def test_processes_share_the_rows_of_a_batch(monkeypatch):
    assert parallel.is_main() and parallel.process_rows(8) == slice(0, 8)
    parallel.barrier("nobody to wait for")
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    taken = []
    for index in range(4):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        taken.append(list(range(8)[parallel.process_rows(8)]))
        assert parallel.is_main() == (index == 0)
    assert taken == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_writes_the_log(tmp_path, monkeypatch, first):
    monkeypatch.setattr(parallel, "is_main", lambda: first)
    stage = types.SimpleNamespace(name="prior", training=Training(steps=2, log_every_steps=1))
    with train.Log(tmp_path, stage, None) as log:
        log.start(0)
        log.step(1, {"loss": jnp.float32(0.5), "gradient_norm": jnp.float32(2.0)}, 0.0)
        log.validation(1, {"score": 0.25}, 1.0)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(train.read_log(tmp_path / train.LOG)) == 2 * first and bool(written) == first
