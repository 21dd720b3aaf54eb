"""Whether training outlasts a busy machine:  python benchmarks/collectives.py [seconds] [busy loops] [steps in flight].

Runs the training loop on two virtual CPU devices, on small steps that wait for no data, beside loops that keep cores
busy, and prints the steps it made. With 1000 steps in flight instead of vgjax.parallel.IN_FLIGHT, XLA's all-reduce soon
stops for good ("may be stuck"), and the process aborts.
"""

import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ stands beside the package

WIDTH, LAYERS, BATCH = 64, 8, 16
LOG_EVERY_STEPS = 1000


class TimeUp(Exception):
    """The seconds are over."""


def keep_busy(until: float) -> None:
    """Uses one core; ends by itself, for the parent may abort."""
    while time.time() < until:
        pass


class SameBatch:
    """A data iterator that costs nothing, so that steps are asked for faster than they are made."""

    def __init__(self, *arguments: object):
        import numpy as np

        self._rows = {"x": np.random.default_rng(0).normal(size=(BATCH, WIDTH)).astype(np.float32)}

    def __next__(self) -> dict[str, Any]:
        return self._rows


class Layers:
    """A stage of `LAYERS` matrices, each with a gradient to add up over the devices; its optimiser is `training`'s."""

    name, weights, frozen = "layers", {"size": 1.0}, {}

    def __init__(self, training: Any):
        endless = dict(steps=10**9, batch_size=BATCH, checkpoint_every_steps=10**9, log_every_steps=LOG_EVERY_STEPS)
        self.training = training.model_copy(update=endless)

    def init(self, key: Any) -> tuple[Any, Any]:
        import jax

        keys = jax.random.split(key, LAYERS)
        return {f"w{i}": jax.random.normal(keys[i], (WIDTH, WIDTH)) / WIDTH**0.5 for i in range(LAYERS)}, {}

    def loss(self, params: Any, model_state: Any, frozen: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        import jax.numpy as jnp

        x_BD = batch["x"]
        for name in sorted(params):
            x_BD = jnp.tanh(x_BD @ params[name])
        return {"size": jnp.mean(x_BD**2, axis=1)}, model_state

    def loss_at(self, step: int) -> Any:
        return self.loss

    def validate(self, *arguments: Any) -> Any:
        return {}

    def source(self, split: str) -> Any:
        return []

    def example(self, row: Any) -> Any:
        return row

    def pretrained(self) -> None:
        return None


def main(arguments: Sequence[str]) -> None:
    """Starts the busy loops, trains until the time is up, prints."""
    seconds, loops, in_flight = [int(a) for a in [*arguments, *["60", "4", "2"][len(arguments) :]]]
    context = multiprocessing.get_context("spawn")
    for _ in range(loops):
        context.Process(target=keep_busy, args=(time.time() + seconds + 60,), daemon=True).start()

    from configs import phantom
    from vgjax import config as configs
    from vgjax import parallel, train
    from vgjax.context import Context

    def stop(*_: object) -> None:
        raise TimeUp

    parallel.IN_FLIGHT, train.training_batches = in_flight, SameBatch
    config = configs.from_config_dict(phantom.get_config("smoke"))
    with tempfile.TemporaryDirectory() as folder:
        context = Context(config, parallel.make_mesh(config.mesh), {}.__getitem__)
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(seconds)
        try:
            train.train(context, Layers(config.denoiser.train), pathlib.Path(folder))
        except TimeUp:
            done = [row["step"] for row in train.read_log(pathlib.Path(folder) / train.LOG)]
            print(f"{max(done, default=0)} steps in {seconds} s beside {loops} busy loops, {in_flight} in flight")


if __name__ == "__main__":
    main(sys.argv[1:])
