"""Command line: `python -m vgjax.main --config=configs/phantom.py --workdir=runs/phantom --mode=run`."""

import logging
import os
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from vgjax.boundary import CONFIG, guarded, leave, read_config
from vgjax.keys import ConfigError

MODES = {
    "run": "prepare, train, evaluate and report, from where it was stopped (default)",
    "prepare": "source pictures to records, captions to embeddings",
    "train": "the three stages",
    "sample": "draws pictures of a --prompt, or of --anatomy and --modality, or changes them in one that is there",
    "evaluate": "measures how well drawn pictures follow their captions: metrics.json",
    "report": "report.html, one self-contained page",
    "export": "writes what diffusers and PEFT read",
    "status": "tells which artefacts are there, which are missing and why, and which nothing needs",
    "bench": "not built yet",
    "serve": "not built yet",
}
ASKED = ("prompt", "anatomy", "modality", "mask", "edit")
TAKES = {  # flags of some modes
    "sample": [*ASKED, "anatomy_to", "modality_to", "strength", "n", "seed", "refuse-copies"],
    "export": ["prompt"],
    "report": ["compare"],
}
TAKEN = list(dict.fromkeys(name for taken in TAKES.values() for name in taken))
PLANNED = ("bench", "serve")
HELP = {"-h", "-help", "--help", "-helpfull", "--helpfull"}
USAGE = "usage: python -m vgjax.main --config=FILE[:VARIANT+VARIANT] [--mode=MODE] [--config.KEY=VALUE ...]"

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default runs/<config name>.")
_STORE = flags.DEFINE_string("store", "", "Folder of artefacts, which runs share; default: store, beside the workdir.")
_MODE = flags.DEFINE_enum("mode", "run", list(MODES), "What to do.")
_COMPARE = flags.DEFINE_list("compare", [], "Workdirs of further runs, to stand beside this one in --mode=report.")
_PROMPT = flags.DEFINE_string("prompt", "", "Text to draw in --mode=sample, or in the example of --mode=export.")
_ANATOMY = flags.DEFINE_string("anatomy", "", "What the anatomy is taken from: a text or a picture's file.")
_MODALITY = flags.DEFINE_string("modality", "", "The same for the imaging style.")
_MASK = flags.DEFINE_string("mask", "", "File of a lesion mask that the anatomy is to fit, beside any text.")
_EDIT = flags.DEFINE_string("edit", "", "File of a picture to be changed in what else is asked for, and in no more.")
_STRENGTH = flags.DEFINE_float("strength", None, "Edit by noise of this share (SDEdit), not by inversion.", 0.01, 1.0)
_ANATOMY_TO = flags.DEFINE_string("anatomy_to", "", "What --anatomy goes over to, in --n pictures of one seed.")
_MODALITY_TO = flags.DEFINE_string("modality_to", "", "The same for --modality.")
_N = flags.DEFINE_integer("n", 0, "How many pictures to draw; default sample.count.", 0, 1_000_000)
_REFUSE = flags.DEFINE_bool("refuse-copies", False, "Draw again what is a copy of a training picture.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of the first picture drawn; default the config's.", 0, (1 << 64) - 1)


@guarded
def main(argv: list[str]) -> None:
    """Parses and dispatches."""
    if HELP.intersection(argv):
        return print(_help())
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ stands beside the package
    return _dispatch(_read(argv))


def _read(argv: list[str]) -> ConfigDict:
    """The config of a command line whose flags go together."""
    config, mode = read_config(argv), _MODE.value
    if mode in PLANNED:
        raise ConfigError(
            f"--mode={mode} is not built yet: choose one of {', '.join(m for m in MODES if m not in PLANNED)}"
        )
    for name in TAKEN:
        if flags.FLAGS[name].present and name not in TAKES.get(mode, ()):
            modes = " or ".join(f"--mode={other}" for other, taken in TAKES.items() if name in taken)
            raise ConfigError(f"--{name} means nothing in --mode={mode}: give it to {modes}")
    if _STRENGTH.present and not (_EDIT.value and (_STRENGTH.value or 0) <= 1.0):  # nan passes the flag's own bounds
        raise ConfigError("--strength, in [0.01, 1], says how much noise an edit takes: give it with --edit=PICTURE")
    if _REFUSE.value and any(flag.value for flag in (_EDIT, _ANATOMY_TO, _MODALITY_TO)):
        raise ConfigError(
            "--refuse-copies draws again from another seed: leave out --edit, --anatomy_to, --modality_to"
        )
    if mode == "sample" and not any(flags.FLAGS[name].value for name in ASKED):
        raise ConfigError('--mode=sample needs --prompt="TEXT", or any of --anatomy, --modality, --mask and --edit')
    return config


def _help() -> str:
    from vgjax.config import Config
    from vgjax.keys import describe

    modes = [f"  {mode:<9} {words}" for mode, words in MODES.items()]
    helps = {"config": CONFIG} | {name: flags.FLAGS[name].help for name in ("workdir", "store", "mode", *TAKEN)}
    names = [f"  --{name:<11} {words}" for name, words in helps.items()]
    keys = "config keys with their defaults, which a config file may change (--config.denoiser.train.steps=3000):"
    return "\n".join([USAGE, "", "modes:", *modes, "", "flags:", *names, "", keys, "", *describe(Config())])


def _dispatch(config: ConfigDict) -> None:
    # The heavy imports come after the flags are known to be good.
    import jax

    # Must come before the first computation: compiled programs are kept between runs.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/vgjax/jax"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for name in ("absl", "jax"):  # JAX would tell of every platform that is not there
        logging.getLogger(name).setLevel(logging.WARNING)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize()

    from vgjax import run as runs

    run = runs.open_run(config, _WORKDIR.value, _STORE.value)
    given = {name.replace("-", "_"): flags.FLAGS[name].value for name in TAKES.get(_MODE.value, ())}
    runs.MODES[_MODE.value](run, **given)


if __name__ == "__main__":
    leave(main(sys.argv))
