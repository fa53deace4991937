"""Build the stand-ins that are missing: `python -m tests.deploy.stand_ins`."""

import os
import sys

from tests.deploy import stand_ins
from tests.deploy.image import engine

adclick = os.environ.get("ADCLICK") or f"adclick:{stand_ins.version()}"
base = os.environ.get("BASE") or "localhost/adclick-base:bookworm"
for name in stand_ins.build(engine(), adclick=adclick, base=base, again="--again" in sys.argv):
    print(f"built {name}")
