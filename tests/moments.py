"""A command in a process that stops at a moment of its own: when it is about to change a certain file.

python -m tests.moments FOLDER WAY PLACE FLAGS
"""

import os
import re
import signal
import sys
from typing import Any

from vgjax import main as vgjax_main
from vgjax.boundary import leave

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
VARYING = re.compile(r"[0-9a-f]{24,32}|(?<=-)[0-9a-f]{12}|(?<=tfevents\.).*|(?<=incomplete\.)[^/]*")


class Moments:
    """Names each first change below a folder, before it is made, as "fsync store/prior-*.part/checkpoints/3/metrics".

    Files that Python does not write itself (array_record, tensorstore, safetensors) are seen when they are named.
    """

    def __init__(self, folder: str, way: str, place: str):
        self._folder, self._place, self._seen = f"{os.path.realpath(folder)}/", place, set[str]()
        self._at_any, self._there = way == "list", WAYS[way]

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A hook of `sys.addaudithook`."""
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            inside = arguments[-1] if event in ("os.remove", "os.rmdir") else -1
            self.come(event, arguments[event == "os.rename"], inside)

    def come(self, event: str, path: Any, inside: int = -1) -> None:
        """To a change of a path, or an open file's number; relative to an open folder where one is given."""
        opened = lambda number: os.readlink(f"/proc/self/fd/{number}")
        path = opened(path) if isinstance(path, int) else os.fsdecode(path)
        path = os.path.abspath(os.path.join(opened(inside) if inside >= 0 else "", path))
        if path.startswith(self._folder):
            place = f"{event} {VARYING.sub('*', path.removeprefix(self._folder))}"
            if place not in self._seen and (self._at_any or place == self._place):
                self._there(place)
            self._seen.add(place)


WAYS = {
    "list": lambda place: os.write(1, f"{place}\n".encode()),
    "tell": lambda place: os.write(1, f"{place}\n".encode()),
    "kill": lambda place: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": lambda place: signal.raise_signal(signal.SIGINT),
}


def main(folder: str, way: str, place: str, *flags: str) -> int:
    """The command; by the way, all places are listed, or something happens at one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell are started without
    moments, fsync = Moments(folder, way, place), os.fsync
    os.fsync = lambda file: moments.come("fsync", file) or fsync(file)
    sys.addaudithook(moments.audit)
    return vgjax_main.main(["vgjax", *flags])


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
