"""Command line: `python -m vgjax.main --config=configs/phantom.py --workdir=runs/phantom --mode=run`."""

from __future__ import annotations

import logging
import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

MODES = ("run", "prepare", "train", "sample", "evaluate", "report", "export", "bench", "serve")
PLANNED = ("bench", "serve")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/phantom.py or configs/phantom.py:smoke."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default runs/<config name>.")
_MODE = flags.DEFINE_enum("mode", "run", MODES, "What to do; run does everything, from where it was stopped.")
_PROMPT = flags.DEFINE_string("prompt", "", "Text to draw in --mode=sample, or in the example of --mode=export.")


def main(argv: list[str]) -> int:
    """Parses, dispatches, and turns every error the user can mend into one sentence and exit code 2."""
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ stands beside the package
    try:
        flags.FLAGS(argv)
        if _CONFIG.value is None:
            raise flags.Error("--config is missing: name a config file, e.g. --config=configs/phantom.py")
        _CONFIG.value.to_dict()  # a file that could not be loaded complains only here
        if _MODE.value in PLANNED:
            built = ", ".join(mode for mode in MODES if mode not in PLANNED)
            raise flags.Error(f"--mode={_MODE.value} is not built yet: choose one of {built}")
        if _MODE.value == "sample" and not _PROMPT.value:
            raise flags.Error('--mode=sample needs --prompt="TEXT"')
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError, ImportError, SyntaxError) as error:
        return _refuse(error)
    from vgjax.config import ConfigError  # the heavy imports come after the flags are known to be good

    try:
        _dispatch()
    except ConfigError as error:
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


def _dispatch() -> None:
    import jax

    # Must come before the first computation: compiled programs are kept between runs.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/vgjax/jax"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize()

    from vgjax import run as runs

    run = runs.open_run(_CONFIG.value, _WORKDIR.value)
    runs.MODES[_MODE.value](run, _PROMPT.value)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
