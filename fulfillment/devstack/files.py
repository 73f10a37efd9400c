"""Private directories, files and locks; nothing here is readable by another user."""

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

from fulfillment.errors import ConfigurationError

SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), without its closing NUL
LONGEST_SOCKET_NAME = len("/.s.PGSQL.5432.lock")
DIRECTORY_PREFIX = "fulfillment-"
RETRY_S = 0.05


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner enters. Raises ConfigurationError where it cannot.

    One that a person made keeps its mode: it may be a mount, or a directory with other things.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(13, "other users may write into it")
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "this user may not write into it")
    except OSError as error:
        raise ConfigurationError(
            "FULFILLMENT_DATA_DIR", f"cannot use {path} as a private directory: {error.strerror}"
        ) from error
    return path


def short_private_directory(pointer: Path) -> Path:
    """Make a 0700 directory whose path fits a unix socket, remembered by the symlink `pointer`.

    The one that a killed stack left behind is removed first. The path has no odd characters,
    because it becomes part of URLs.
    """
    remove_short_directory(pointer)
    usual = tempfile.gettempdir()
    room = SOCKET_PATH_LIMIT - LONGEST_SOCKET_NAME - len(f"/{DIRECTORY_PREFIX}XXXXXXXX")
    plain = re.fullmatch(r"[A-Za-z0-9/._-]+", usual) is not None
    base = usual if plain and len(usual) <= room else "/tmp"  # noqa: S108
    path = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=base))
    pointer.symlink_to(path)
    return path


def remove_short_directory(pointer: Path) -> None:
    if not pointer.is_symlink():
        return
    target = Path(os.readlink(pointer))
    if target.name.startswith(DIRECTORY_PREFIX):
        shutil.rmtree(target, ignore_errors=True)
    pointer.unlink()


class DirectoryLock:
    """An exclusive claim on a directory, held until closed, by children that inherit it too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        return self._file is not None

    @property
    def descriptor(self) -> int:
        assert self._file is not None
        return self._file

    def acquire(self, wait_s: float = 0) -> None:
        """Take the lock. Raises ConfigurationError when another stack has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(RETRY_S)
                    continue
                os.close(descriptor)
                raise ConfigurationError(
                    "FULFILLMENT_DATA_DIR",
                    f"{self._path.parent} is in use by another running stack",
                ) from None
            self._file = descriptor
            return

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only its owner reads, whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
