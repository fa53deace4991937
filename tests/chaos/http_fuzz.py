"""`make fuzz-http`: tens of thousands of requests, right and wrong, made up by schemathesis from the OpenAPI document; every answer must
be what the document says, and none an error of the server.

Streams are left out, since they do not end; their parameters are those of /v1/metrics.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.settings import resolve
from tests.conftest import adclick

# A right parameter beside another right one may be a wrong question: an end before its start, say; and a right day may not have
# been reconciled.
_CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "400", "403", "404", "422"]
"""


def main() -> None:
    """Run it once."""
    cases, seed = os.environ.get("CASES") or "10000", os.environ.get("SEED") or "1"
    with tempfile.TemporaryDirectory(prefix="adclick-fuzz-") as work:
        stack = Path(work) / "stack"
        done = adclick(
            "up",
            "--detach",
            "--dir",
            str(stack),
            "--query-workers",
            "2",
        )
        if done.returncode:
            sys.exit(done.stderr)
        try:
            settings = resolve(str(stack)).settings
            config = Path(work) / "schemathesis.toml"
            config.write_text(_CONFIG)
            tool = Path(sys.executable).with_name("schemathesis")
            words = [
                "--config-file", str(config), "run", f"{settings.http}/openapi.json", "--checks", "all", "--exclude-path", "/v1/stream",
                "--header", f"Authorization: Bearer {settings.api_key.get_secret_value()}", "--max-examples", cases, "--seed", seed,
                "--workers", "2", "--suppress-health-check", "all", "--continue-on-failure",
            ]  # fmt: skip
            code = subprocess.run([str(tool), *words], cwd=work).returncode
        finally:
            adclick("down", "--dir", str(stack))
    sys.exit(code)


if __name__ == "__main__":
    main()
