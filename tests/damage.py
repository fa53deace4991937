"""Record batches that are damaged on a broker's disk, where no client could have written them."""

from __future__ import annotations

import struct
from pathlib import Path

from google_crc32c import value as crc32c

_UNKNOWN_CODEC = 7


def damage_batch(partition_folder: Path, offset: int, how: str) -> bytes:
    """Change the record batch that has the message at an offset: `checksum` flips a bit of its last record, `codec` has its header name a
    codec that does not exist, under a right checksum. Returns its bytes as they are then. The broker may run: it keeps no messages in memory
    of its own."""
    segment = max(file for file in partition_folder.glob("*.log") if int(file.stem) <= offset)
    data, at = segment.read_bytes(), 0
    while True:
        first, size = struct.unpack_from(">qi", data, at)
        stop = at + 12 + size
        if first <= offset <= first + struct.unpack_from(">i", data, at + 23)[0]:
            break
        at = stop
    batch = bytearray(data[at:stop])
    if how == "checksum":
        batch[-1] ^= 4
    else:
        batch[22] |= _UNKNOWN_CODEC
        struct.pack_into(">I", batch, 17, crc32c(bytes(batch[21:])))
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(batch)
    return bytes(batch)
