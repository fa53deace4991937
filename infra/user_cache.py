"""The folder for what can be made again: compiled loops, Kafka's jars.

A container may run as a uid that has no name and no home, on a file system of which it can write only the temporary folder.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import platformdirs


def user_folder() -> Path | None:
    """The user's own cache folder, there or not; None for a user without a home."""
    try:
        path = Path(platformdirs.user_cache_dir("adclick"))
    except RuntimeError:
        return None
    # Older versions leave `~` as it is.
    return path if path.is_absolute() else None


def writable_folder() -> Path:
    """A folder that this process can write: the user's cache, else one in the temporary folder. Raises OSError where neither can be."""
    user = user_folder()
    if user is not None and _is_writable(user):
        return user
    temporary = Path(tempfile.gettempdir()) / f"adclick-cache-{os.getuid()}"
    temporary.mkdir(mode=0o700, exist_ok=True)
    status = temporary.lstat()
    # What is read from here is run: no other user may have written it.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{temporary} belongs to another user")
    return temporary


def _is_writable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False
