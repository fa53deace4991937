"""Types that msgspec decodes to are ready before threads use them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from infra.structs import decodable

ROOT = Path(__file__).parents[2]
_PACKAGES = ("infra", "ingest", "stream", "batch", "query")
# Eight threads that decode a type at once which no one has decoded before, and change turns as often as they can.
_AT_ONCE = """
import sys, threading
import msgspec
from stream import chunks
from stream.closing import Closing, Source, Upstream

header = chunks.ChunkHeader(5, 1, 0, 1, Closing(sources={0: Source(1, 2, False)}), None, 0, upstream={0: Upstream(1, 2, 3)})
raw, barrier, decoded = msgspec.json.encode(header), threading.Barrier(8), []
sys.setswitchinterval(1e-6)

def decode():
    barrier.wait()
    decoded.append(msgspec.json.decode(raw, type=chunks.ChunkHeader))

threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert decoded == [header] * 8
"""


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for file in (f for package in _PACKAGES for f in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                yield f"{file.relative_to(ROOT)}: {node.name}", node


def test_every_struct_is_made_ready_at_its_import() -> None:
    structs = [(name, node) for name, node in classes() if any(ast.unparse(b) == "msgspec.Struct" for b in node.bases)]
    unready = [name for name, node in structs if decodable.__name__ not in map(ast.unparse, node.decorator_list)]
    assert unready == []
    assert len(structs) > 30


def test_many_threads_may_decode_a_type_for_the_first_time_at_once() -> None:
    for _ in range(3):
        subprocess.run([sys.executable, "-c", _AT_ONCE], cwd=ROOT, check=True)
