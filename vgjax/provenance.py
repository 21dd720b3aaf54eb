"""Where numbers come from: fingerprints of weights, and the command, commit, hardware and versions of a run."""

import hashlib
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
HOST_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes
PACKAGE_DIR = Path(__file__).resolve().parent


def fingerprint(tree: Mapping[str, Any]) -> str:
    """sha256 over the sorted (name, dtype, shape, little-endian bytes) of a nested dict of arrays.

    Names are joined by '/', so a flat and a nested spelling of the same tree agree. Equal fingerprints mean
    bit-equal arrays of equal type and shape under equal names, whatever the order of the dict.

    Raises:
      ValueError: the tree holds no array, a leaf is no numeric array, or two leaves share a joined name.
    """
    flat = flax.traverse_util.flatten_dict(dict(tree))
    leaves = {"/".join(map(str, names)): leaf for names, leaf in flat.items()}
    if not leaves or len(leaves) < len(flat):
        raise ValueError(f"fingerprint: the tree has {len(flat)} arrays under {len(leaves)} names")
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        array = np.asarray(leaf)
        if array.dtype.hasobject:
            raise ValueError(f"fingerprint: '{name}' is {type(leaf).__name__}, not an array")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        # JSON keeps the fields apart: no two different headers read alike.
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode() + b"\n")
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def provenance(seed: int) -> dict[str, Any]:
    """What a reader needs to run this again: command, commit, hardware, device_count, seed, versions.

    The command is `sys.argv` with absolute paths cut down to their last part; the caller adds "config".
    """
    devices = jax.devices()
    return {
        "command": command_line(sys.argv),
        "commit": _commit(PACKAGE_DIR),
        "hardware": f"{len(devices)} x {devices[0].device_kind}; {_cpu()}, {HOST_MEMORY / 2**30:.0f} GiB memory",
        "device_count": len(devices),
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
    }


def command_line(argv: Sequence[str]) -> str:
    """The command as one shell line without the paths of this machine: "/a/b/c" becomes "c"."""
    program, *arguments = map(_last_part, argv)
    head = ["python", "-m", "vgjax.main"] if argv[0].endswith("vgjax/main.py") else [program]
    return shlex.join([*head, *arguments])


def _last_part(argument: str) -> str:
    # An absolute path begins the argument or follows '=', ',' or ':'; the second slash of "gs://" does not count.
    return re.sub(r"(^|[=,:])(/(?!/)[^=,:]*)", lambda found: found[1] + Path(found[2]).name, argument)


def _commit(package_dir: Path) -> str:
    """Hash of the commit that the package runs from, "-dirty" where package or configs differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package_dir), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository: only a tracked package has a commit.
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--", ".", "../configs") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def memory_bytes() -> int:
    """Memory of all devices together; of CPU devices, the machine's with its swap."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return sum(limits) * jax.process_count() or HOST_MEMORY + 1024 * int(
        _from_kernel("/proc/meminfo", r"^SwapTotal:\s*(\d+) kB$") or 0
    )


def _from_kernel(path: str, pattern: str) -> str:
    """What the pattern's group is in a file of the kernel's; empty where there is none."""
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _cpu() -> str:
    model = _from_kernel("/proc/cpuinfo", r"^model name\s*:\s*(.+)$")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model or platform.processor() or platform.machine()}, {cores} cores"


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    # getrusage inherits the peak of the process that forked this one; the kernel's high-water mark does not.
    if kilobytes := _from_kernel("/proc/self/status", r"^VmHWM:\s*(\d+) kB$"):
        return int(kilobytes) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
