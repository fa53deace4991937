"""The files of the dashboard, read once and compressed once: our own from this package, those of libraries from their jars.

All lie under a folder that is named by a digest of all of them. Modules import each other by relative paths, so one change gives
all of them new addresses, and browsers may keep each address for ever.
"""

from __future__ import annotations

import hashlib
import mimetypes
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import cramjam

from infra.embedded import jars

FOLDER = "static"
_PAGE = "index.html"
# Where a library's files are in its jar, what they are called here, and what is appended: a script that defines a global becomes a module.
_LIBRARY_FILES = {
    "vendor/lit-html.js": ("lit-html-3.2.1.jar", "lit-html/3.2.1/lit-html.js", b""),
    "vendor/directive.js": ("lit-html-3.2.1.jar", "lit-html/3.2.1/directive.js", b""),
    "vendor/directive-helpers.js": ("lit-html-3.2.1.jar", "lit-html/3.2.1/directive-helpers.js", b""),
    "vendor/directives/repeat.js": ("lit-html-3.2.1.jar", "lit-html/3.2.1/directives/repeat.js", b""),
    "vendor/uplot.js": ("uplot-1.6.30.jar", "uplot/1.6.30/dist/uPlot.iife.min.js", b"\nexport default uPlot;\n"),
    "vendor/uplot.css": ("uplot-1.6.30.jar", "uplot/1.6.30/dist/uPlot.min.css", b""),
}
_MEDIA_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Asset:
    """A file as it is sent. `encoded`: content coding → its bytes in that coding."""

    body: bytes
    media_type: str
    encoded: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, body: bytes) -> Asset:
        """The file, compressed in each coding that makes it smaller."""
        media_type = _MEDIA_TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        candidates = {
            "zstd": bytes(cramjam.zstd.compress(body, level=15)), "gzip": bytes(cramjam.gzip.compress(body, level=9))
        }  # fmt: skip
        return cls(body, media_type, {coding: data for coding, data in candidates.items() if len(data) < len(body)})


@dataclass(frozen=True)
class Assets:
    """The page, and all files that it loads, by their path below the page's address."""

    page: Asset
    files: dict[str, Asset]

    @classmethod
    def load(cls) -> Assets:
        """Read all files. Raises UserError where a library is missing and cannot be fetched."""
        ours = dict(_walk(resources.files(__package__) / FOLDER))
        template = ours.pop(_PAGE).decode()
        files = ours | _read_libraries(jars.fetch(jars.DASHBOARD))
        digest = hashlib.sha256()
        for name, body in sorted(files.items()):
            digest.update(f"{name}\0{len(body)}\0".encode() + body)
        base = f"{FOLDER}/{digest.hexdigest()[:16]}/"
        scripts = sorted(name for name in files if name.endswith(".js"))
        preloads = "\n".join(f'<link rel="modulepreload" href="{base}{name}">' for name in scripts)
        page = template.replace("{{base}}", base).replace("{{preloads}}", preloads)
        return cls(
            Asset.of(_PAGE, page.encode()), {f"/{base}{name}": Asset.of(name, body) for name, body in files.items()}
        )


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry.read_bytes()


def _read_libraries(folder: Path) -> dict[str, bytes]:
    files = {}
    for name, (jar, path, appended) in _LIBRARY_FILES.items():
        with zipfile.ZipFile(folder / jar) as archive:
            files[name] = archive.read(f"META-INF/resources/webjars/{path}") + appended
    return files
