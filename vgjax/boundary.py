"""The boundary around every command: whatever goes wrong ends in one sentence and an exit code, never in a traceback.

0: done; 2: what the user can mend; 130: interrupted; 1: a fault of vgjax itself, whose trace is kept in a file.
"""

import _thread
import atexit
import contextlib
import errno
import functools
import logging
import os
import re
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, ParamSpec

from absl import flags
from ml_collections import ConfigDict, config_flags

from vgjax.keys import LISTED, ConfigError

P = ParamSpec("P")
CONFIG = "File, e.g. configs/phantom.py or configs/phantom.py:smoke."
INTERRUPTED = "interrupted: the same command goes on from where it was"
AGAIN = "mend this and give the same command again"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room and give the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "mend its permissions"),
    errno.EROFS: "name another --workdir or --store",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
LOADED = ("config_config", "configs.")  # names of config files as modules, and of those that they import


def guarded(command: Callable[P, int | None]) -> Callable[P, int]:
    """The command with an exit code: what it returns, or 0; its errors become one line on stderr."""

    @functools.wraps(command)
    def within(*arguments: P.args, **options: P.kwargs) -> int:
        sys.unraisablehook = _pass_on
        try:
            return command(*arguments, **options) or 0
        except (Exception, KeyboardInterrupt) as error:
            code, told = 2, f"error: {next(filter(None, map(_sentence, _chain(error))), '')}"
            if any(isinstance(one, KeyboardInterrupt) for one in _chain(error)):  # whatever a library made of it
                code, told = 130, INTERRUPTED
            elif told == "error: ":
                code = 1
                told += f"a fault of vgjax itself ({_words(error)}): please report it with {_kept_trace()}"
            print(" ".join(told.split()), file=sys.stderr)
            return code

    return within


def leave(code: int) -> NoReturn:
    """Ends the process; where work was broken off without a teardown, in which threads still at it would crash."""
    if code:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit()


def read_config(argv: Sequence[str]) -> ConfigDict:
    """Parses a command line, of which every argument must be a flag's, and returns the ConfigDict of its --config.

    Raises:
      ConfigError: a flag or a config file cannot be used.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    named = re.findall(r"^--?config[=\n]([^:\n]*)", "\n".join(argv), re.MULTILINE)
    try:
        if not named:
            raise ConfigError("--config is missing: name a config file, e.g. --config=configs/phantom.py")
        if not os.path.isfile(named[-1]):  # a pipe would be waited for
            raise ConfigError(f"--config: '{named[-1]}' is not a file: name one, e.g. --config=configs/phantom.py")
        flag = config_flags.DEFINE_config_file("config", None, CONFIG, sys_argv=list(argv))
        if over := flags.FLAGS(list(argv))[1:]:
            raise ConfigError(f"argument {over[0]!r} belongs to no flag: put quotes around a text of several words")
        if not hasattr(flag.value, "to_dict"):  # which raises where the file could not be loaded
            made = type(flag.value).__name__
            raise ConfigError(f"--config: get_config of '{named[-1]}' returned {made}: return a ConfigDict")
        flag.value.to_dict()
        return flag.value
    except (Exception, SystemExit) as error:
        chain = [*_chain(error)]
        if told := [one for one in chain if isinstance(one, ConfigError | KeyboardInterrupt)]:
            raise told[-1] from None
        known = str(error) if isinstance(error, flags.Error) else f"--config: '{named[-1]}': {_words(error)}"
        if isinstance(error, KeyError):
            known = f"unknown config key {error.args[0]}: {LISTED}"
        raise ConfigError(_place(chain) or known) from None


def _place(chain: Sequence[BaseException]) -> str:
    """File, line and message of what was raised in a config file; empty where nothing was."""
    for one in reversed(chain):
        for frame, line in reversed([*traceback.walk_tb(one.__traceback__)]):
            if frame.f_globals.get("__name__", "").startswith(LOADED):
                return f"config file '{frame.f_code.co_filename}', line {line}: {_words(one)}"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came of."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(error: BaseException) -> str:
    """What the user can mend; empty where the fault is ours."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        named = error.filename2 or error.filename  # of what could not be renamed, the place that was to be taken
        place = f"'{named}': " if named else ""
        return f"{place}{error.strerror}: {REMEDIES.get(error.errno, AGAIN)}"
    if "[OS error 28" in str(error):  # how tensorstore tells of it, below Orbax
        return f"the disk is full: {REMEDIES[errno.ENOSPC]}"
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
        return f"memory does not suffice ({_words(error)[:200]}): lower sizes, or the batch size of what was under way"
    return ""


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _kept_trace() -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="vgjax-", suffix=".txt", delete=False, errors="replace") as file:
            traceback.print_exc(file=file)
        return file.name
    except OSError as error:
        return f"its trace, which could not be kept ({error.strerror})"


def _pass_on(lost: Any) -> None:
    """Where Python can raise nothing (in a destructor, a callback), an interrupt still reaches the main thread."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, _thread.interrupt_main).start()  # when this call, which can raise nothing either, is over
    else:
        sys.__unraisablehook__(lost)
