"""What every test stands on: eight virtual CPU devices, no network, strict ranks, a compile cache.

JAX and the Hugging Face hub read these environment variables when they are imported, and the processes that tests start
inherit them; so they are set before anything else is imported.
"""

import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(REPO / ".cache" / "jax")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(REPO / ".cache" / "hypothesis")
# By default JAX keeps only what took over a second to compile; tests compile many small programs.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Tests compile far more than they compute: without LLVM's optimisations the suite takes about half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import jax  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# A shape that broadcasts by accident is a bug that trains.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Grain's worker processes read absl flags, which only absl.app.run would have parsed.
flags.FLAGS.mark_as_parsed()


class NetworkRefused(RuntimeError):
    """A test tried to reach another machine."""


def _is_local(address: object) -> bool:
    """Whether a socket address stays on this machine: a UNIX path, localhost or a loopback IP."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Makes every Python socket refuse to connect anywhere but to this machine."""

    def refusing(connect):
        def guarded(self, address):
            if not _is_local(address):
                raise NetworkRefused(f"A test tried to connect to {address}; tests run without a network.")
            return connect(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refusing(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", refusing(socket.socket.connect_ex))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with one subfolder per real dataset; the test skips where it is absent."""
    root = Path(os.environ.get("VGJAX_TEST_DATA", REPO.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}; set VGJAX_TEST_DATA to the folder that holds the datasets")
    return root


@pytest.fixture
def at_once() -> Iterator[None]:
    """Fails a test that waits, for a pipe to be written to, say, longer than ten seconds."""

    def fail(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 10)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def unprivileged() -> Callable[[Path], contextlib.AbstractContextManager[None]]:
    """Makes a file, or takes one, that the block may neither read nor write: not even a test that runs as root."""

    @contextlib.contextmanager
    def without(path: Path) -> Iterator[None]:
        if not path.exists():
            path.touch()
        mode, user = path.stat().st_mode, os.geteuid()
        path.chmod(0)
        if not user:
            os.seteuid(65534)
        try:
            yield
        finally:
            if not user:
                os.seteuid(user)
            path.chmod(mode)

    return without
