"""How fast pictures are prepared and streamed:  python benchmarks/data.py [pictures].

Prints medians of three: pictures a second that preparation decodes from JPEG files of 0.26 and 6 megapixels, and rows a
second that Grain delivers to stage 3 of the default config, beside what its training steps consume.
"""

import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ stands beside the package

SIZES = {"0.26 MP": (512, 512), "6 MP": (2000, 3000)}
REPEATS = 3


def median_rate(work: Callable[[], int]) -> float:
    """Median of units a second."""
    rates = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates)


def write_pictures(folder: pathlib.Path, count: int, size: tuple[int, int]) -> None:
    """A folder dataset of smooth noise with disc masks."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    y, x = np.mgrid[: size[0], : size[1]]
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(size[::-1])
        coarse.save(folder / "images" / f"{number}.jpg", quality=92)
        disc = np.hypot(y - size[0] * 0.4, x - size[1] * 0.5) < size[0] * rng.uniform(0.1, 0.3)
        Image.fromarray(disc).save(folder / "masks" / f"{number}.png")


def preparation(folder: pathlib.Path) -> float:
    """Pictures a second through the decoder, all cores."""
    from vgjax.data.prepare.parts import Parts
    from vgjax.data.read.decode import Settings
    from vgjax.data.sources.folder import SOURCE

    entries = SOURCE.index(str(folder)).entries
    settings = Settings(str(folder), 64, "crop", 64_000_000, SOURCE.vocabulary)

    def work() -> int:
        with tempfile.TemporaryDirectory() as place:
            Parts(pathlib.Path(place) / "parts", entries, settings).decode(0)
        return len(entries)

    return median_rate(work)


def streaming(folder: pathlib.Path) -> tuple[float, float]:
    """Rows a second that stage 3's data iterator delivers, and that its training step takes."""
    import jax

    from configs import phantom
    from vgjax import optim, parallel
    from vgjax import run as runs
    from vgjax.data.stream import training_batches
    from vgjax.stages import plan
    from vgjax.state import create
    from vgjax.train import train, train_step

    c = phantom.get_config()
    c.data.update(dict(train_items=1000, validation_items=64, test_items=8))
    c.prior.train.steps, c.disentangler.train.steps = 1, 1
    run = runs.open_run(c, str(folder / "run"))
    runs.prepare(run)
    *earlier, last = plan(run.config)
    for spec in earlier:
        train(run, spec.make(run))
    stage = last.make(run)
    size, seed = stage.training.batch_size, run.config.seed
    data = training_batches(stage.source("train"), stage.example, size, seed)
    next(data)
    delivered = median_rate(lambda: sum(len(next(data)["embedding"]) for _ in range(40)))
    tx = optim.optimizer(stage.training)
    state = create(*stage.init(jax.random.key(0)), tx, stage.training.ema_decay)
    step = jax.jit(lambda state, frozen, batch: train_step(stage, tx, seed, stage.loss, state, frozen, batch)[0])
    batch = parallel.to_global(next(data), run.mesh)
    state = jax.block_until_ready(step(state, stage.frozen, batch))

    def work() -> int:
        nonlocal state
        for _ in range(10):
            state = step(state, stage.frozen, batch)
        jax.block_until_ready(state)
        return 10 * size

    return delivered, median_rate(work)


def main() -> None:
    """Prints the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        for title, size in SIZES.items():
            few = count if title != "6 MP" else max(count // 10, 130)
            write_pictures(place / title, few, size)
            print(f"prepare, {title}: {preparation(place / title):.0f} pictures a second ({few} pictures)")
        delivered, taken = streaming(place)
        print(f"stage 3: {delivered:.0f} rows a second delivered, {taken:.0f} consumed: {delivered / taken:.1f} x")


if __name__ == "__main__":
    main()
