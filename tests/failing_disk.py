"""A disk that fails, and a process that is killed, at the n-th change to what lies below a folder."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from unittest import mock

CHANGES = {
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.chmod": 1,
    "os.symlink": 2,
}  # paths of each
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
KINDS = ("killed", "power cut", "full", "denied")


class Killed(BaseException):
    """The process is gone: what it would still do, in `finally` say, does not reach the disk."""


class Disk:
    """What becomes of changes below `root`, from the `at`-th on.

    "killed": there are none any more; a file opened for writing is left torn. "power cut": besides, what was written
    and not synced is lost. "full": nothing can be made. "denied": nor can anything below the folder `place` be read.
    """

    def __init__(self, root: str, kind: str, at: int, place: str = ""):
        self.root, self.kind, self.at, self.place = f"{root}/", kind, at, place
        self.count, self.failed, self.unsynced = 0, False, dict[str, None]()

    def see(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | os.PathLike):
                self._change(event, [os.path.abspath(path)], bool(flags & WRITES))
        elif paths := CHANGES.get(event):
            where = arguments[paths:] if event == "os.remove" or event == "os.rmdir" else ()
            found = [os.fspath(path) for path in arguments[:paths] if isinstance(path, str | os.PathLike)]
            if where and where[0] >= 0:  # how shutil.rmtree goes down
                found = [os.path.join(os.readlink(f"/proc/self/fd/{where[0]}"), path) for path in found]
            self._change(event, [os.path.abspath(path) for path in found], True)

    def _change(self, event: str, paths: list[str], writing: bool) -> None:
        if not any(path.startswith(self.root) for path in paths):
            return
        if self.kind == "denied" and self.failed and any(path.startswith(self.place) for path in paths):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), paths[0])
        if not writing:
            return
        first, self.count = not self.failed, self.count + 1
        self.failed |= self.kind != "" and self.count >= self.at
        if self.failed and self.kind in ("killed", "power cut"):
            if first:
                self._die(event, paths[0])
            raise Killed
        if self.failed and self.kind == "full" and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), paths[0])
        if event == "open":
            self.unsynced[paths[0]] = None
        elif event == "os.rename":
            source, target = paths
            for path in [p for p in self.unsynced if p == source or p.startswith(f"{source}/")]:
                del self.unsynced[path]
                self.unsynced[target + path.removeprefix(source)] = None
        elif event == "os.remove":
            self.unsynced.pop(paths[0], None)

    def _die(self, event: str, path: str) -> None:
        if event == "open" and not os.path.lexists(path):
            self.unsynced[path] = None
        lost = self.unsynced if self.kind == "power cut" else ()
        with active(None):
            if event == "open" and not os.path.lexists(path):
                with contextlib.suppress(OSError), open(path, "wb") as file:
                    file.write(b"{to" * (self.at % 3))
            for one in lost:
                if os.path.isfile(one) and not one.endswith(".lock"):
                    os.truncate(one, 0)

    def synced(self, descriptor: int) -> None:
        if self.failed and self.kind in ("killed", "power cut"):
            raise Killed
        self.unsynced.pop(os.readlink(f"/proc/self/fd/{descriptor}"), None)


_active: list[Disk | None] = [None]
_hooked = False


def _hook(event: str, arguments: tuple) -> None:
    if _active[-1] is not None and (event == "open" or event in CHANGES):
        _active[-1].see(event, arguments)


@contextlib.contextmanager
def active(disk: Disk | None) -> Iterator[Disk | None]:
    """The disk of this process while the block runs."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # for good: there is no way to take one out
        _hooked = True
    _active.append(disk)
    try:
        with mock.patch("os.fsync", disk.synced if disk else lambda file: None):  # tells it, and takes no time
            yield disk
    finally:
        _active.pop()
