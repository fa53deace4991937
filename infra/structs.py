"""Types that msgspec decodes to, made ready when their modules are imported."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decodable(cls: type[T]) -> type[T]:
    """Decorate a struct or dataclass that messages are decoded to.

    msgspec reads the annotations of a type at its first use. Of two threads that come to it first at once, one reads what the other has not
    finished, and the process ends with a segmentation fault; an import is done by one thread.
    """
    msgspec.json.Decoder(cls)
    return cls
