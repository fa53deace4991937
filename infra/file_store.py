"""A tree of files: a folder, or what lies below a prefix of a bucket in an S3-compatible store.

A file is there whole or not at all, and durable once it is written: by its name in a folder, by one upload in a bucket. A bucket's
credentials, region and endpoint are the AWS SDK's own: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
`AWS_ENDPOINT_URL`, or a profile. What fails raises Unavailable, Refused where the store says why; a file that is not there,
FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from infra import faults
from infra.addresses import mask
from infra.errors import Denied, Refused, Unavailable, UserError

_BUCKET = "s3://"
# What a file system or a store declines until an operator changes something, by its own name for it.
_REFUSED = {
    "ENOSPC": "free space there",
    "EDQUOT": "raise the quota, or free space there",
    "NO_SUCH_BUCKET": "make the bucket",
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull", "507"), "free space there"),
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"),
        "set AWS_REGION to the region of the bucket",
    ),
    # To a request for one file a store gives no other reason.
    "400": "look at AWS_REGION, and whether AWS_SESSION_TOKEN has expired",
    "SLOW_DOWN": "the store is overloaded",
    "503": "the store is overloaded",
}
_FOLDER_RIGHTS = "let this user write there"
_CREDENTIALS = "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and what they may do in the bucket"
_TOKEN = "renew AWS_SESSION_TOKEN, and start the workers with it"
_DENIED = {
    **dict.fromkeys(("EACCES", "EPERM", "EROFS"), _FOLDER_RIGHTS),
    **dict.fromkeys(("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "403"), _CREDENTIALS),
    **dict.fromkeys(("ExpiredToken", "InvalidToken", "TokenRefreshRequired"), _TOKEN),
    "REQUEST_TIME_TOO_SKEWED": "set this machine's clock",
}
_ERRNO = re.compile(r"\[errno (\d+)\]", re.IGNORECASE)
_AWS = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?.*?(?:ExceptionName: (\w+).*)?$")


@dataclass(frozen=True)
class Stored:
    """A file, by its name below the root, with slashes."""

    name: str
    bytes: int
    modified_ms: int


def is_bucket(where: str) -> bool:
    """Whether a tree is named by a URL, and no folder."""
    return "://" in where


def place_of(where: str) -> str:
    """`FileStore.where` of a tree, without opening it."""
    return where.rstrip("/") if is_bucket(where) else str(Path(where).absolute())


class FileStore:
    """One tree. Every process opens its own."""

    def __init__(self, where: str) -> None:
        """`where`: a folder, or `s3://bucket/prefix`. Raises UserError for a URL of another kind or without a bucket."""
        self.folder = None if is_bucket(where) else Path(where).absolute()
        """The folder, where it is one: libraries read files of it by their paths."""
        self.where = place_of(where)
        """The name by which another process opens this store."""
        self.shown = _without_secrets(self.where) if self.folder is None else self.where
        """The name of the store in messages."""
        base, system = _bucket(where) if self.folder is None else (self.where, fs.LocalFileSystem())
        self._files = fs.SubTreeFileSystem(base, system)

    def address(self, name: str) -> str:
        """The name of a file in messages."""
        return f"{self.shown}/{name}"

    def folders(self) -> list[str]:
        """The folders directly below the root, in order."""
        with self._translated():
            infos = self._files.get_file_info(fs.FileSelector("", allow_not_found=True))
        return sorted(info.path for info in infos if info.type == fs.FileType.Directory)

    def files(self, below: str = "") -> list[Stored]:
        """All files below a folder, in the order of their names."""
        with self._translated():
            infos = self._files.get_file_info(fs.FileSelector(below, recursive=True, allow_not_found=True))
        files = (info for info in infos if info.type == fs.FileType.File)
        return sorted((Stored(f.path, f.size, f.mtime_ns // 1_000_000) for f in files), key=lambda s: s.name)

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for reading at any place."""
        with self._translated():
            return self._files.open_input_file(name)

    def sha256(self, name: str) -> str:
        """Of a file's bytes, in hexadecimal digits."""
        with self.open(name) as source, self._translated():
            return hashlib.file_digest(source, "sha256").hexdigest()

    def write(self, name: str, content: pa.Buffer) -> None:
        """Put a file there, in place of any that was; returns once it is durable."""
        with self._translated(missing=True):
            if self.folder is not None:
                _write(self.folder, name, content)
                return
            faults.point("store.written")
            with self._files.open_output_stream(name) as stream:
                stream.write(content)

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError), self._translated():
            self._files.delete_file(name)

    def check_writable(self, probe: str) -> None:
        """Write a file of this name, and remove it. Raises Unavailable."""
        self.write(probe, pa.py_buffer(b"probe"))
        self.remove(probe)

    def lacking_rights(self, probe: str, *, reads_only: bool = False) -> list[str]:
        """What may not be done here, a line each, by a file of this name: where more than reading is needed, it is written and removed
        again. A folder that does not exist is named, and not made. Raises Unavailable for anything else."""
        if self.folder is not None and not self.folder.exists():
            return [f"folder {self.shown} does not exist: make it, or correct ADCLICK_ARCHIVE"]
        lacking = self._lacking("list files", "s3:ListBucket", self.folders)
        if reads_only:
            # Of a file that does not exist: a store looks at rights before it looks for it.
            return lacking + self._lacking("read files", "s3:GetObject", lambda: self._exists(probe))
        unwritable = self._lacking("write files", "s3:PutObject", lambda: self.write(probe, pa.py_buffer(b"probe")))
        if unwritable:
            return lacking + unwritable
        unreadable = self._lacking("read files", "s3:GetObject", lambda: self.sha256(probe))
        if unreadable:
            with contextlib.suppress(Denied):  # Arrow looks at a file before it removes it
                self.remove(probe)
            return lacking + unreadable
        return lacking + self._lacking("remove files", "s3:DeleteObject", lambda: self.remove(probe))

    def _lacking(self, action: str, right: str, call: Callable[[], object]) -> list[str]:
        """A line where a call is denied."""
        try:
            call()
        except Denied as error:
            return [f"this user may not {action}" + (f" ({right}): {error}" if self.folder is None else f": {error}")]
        return []

    def _exists(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self.open(name).close()
            return True
        return False

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it."""
        with self._translated():
            self._files.delete_dir(name)

    @contextlib.contextmanager
    def _translated(self, *, missing: bool = False) -> Iterator[None]:
        """Raise errors of the file system as decisions; `missing`: also those of files that do not exist."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not missing:
                raise
            raise decision_on(error, self.shown) from error


def decision_on(error: OSError, where: str) -> Unavailable:
    """What to do about an error of the archive at `where`: all of them are waited out."""
    code, reason = _reason(error)
    message = f"the archive {where} cannot be used: {reason}"
    if code in _DENIED:
        return Denied(message, hint=_DENIED[code], backend="archive", code=code)
    if code in _REFUSED:
        return Refused(message, hint=_REFUSED[code], backend="archive", code=code)
    return Unavailable(message, backend="archive")


def is_from_a_bucket(error: OSError) -> bool:
    """Whether a store of objects sent it, or could not be reached: it says nothing of what a file holds."""
    return _AWS.search(str(error)) is not None


def _reason(error: OSError) -> tuple[str, str]:
    """The error's own code, and its text without names of files, which differ each time."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if (aws := _AWS.search(text)) is not None:
        return (aws[3] or aws[2] or aws[1] if aws[1] == "UNKNOWN" else aws[1]), aws[0]
    written = _ERRNO.search(text)
    number = error.errno or (int(written[1]) if written else 0)
    return errno.errorcode.get(number, ""), os.strerror(number) if number else text


def _bucket(url: str) -> tuple[str, fs.FileSystem]:
    shown = _without_secrets(url)
    if not url.startswith(_BUCKET) or not url.partition("?")[0].removeprefix(_BUCKET).strip("/"):
        raise UserError(f"{shown} is neither a folder nor s3://BUCKET/PREFIX")
    try:
        system, base = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].replace(url, shown)
        raise UserError(f"{shown} cannot be used: {reason}") from error
    return base, system


def _without_secrets(url: str) -> str:
    """A bucket's URL without its options, and without a secret key before the `@`."""
    return mask(url).partition("?")[0]


def _write(root: Path, name: str, content: pa.Buffer) -> None:
    """Under a temporary name, synced, renamed, the folders synced."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        faults.point("store.written")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for folder in path.parents:
        _sync(folder)
        if folder == root:
            break


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_of(name: str) -> str:
    """The folder that a file lies in, below the root."""
    return str(PurePosixPath(name).parent)
