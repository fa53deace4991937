"""`make fuzz-http`: tens of thousands of requests, right and wrong, made up by schemathesis from the OpenAPI document; every answer must
be what the document says, and none an error of the server.

First what its command line does with each example and each border of each parameter, then random cases: half of them right by
the document, half wrong. Streams are left out, since they do not end; their parameters are those of /v1/metrics.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import AcceptedNegativeData, FailureGroup
from schemathesis.core.result import Ok

from infra.settings import Settings, resolve
from tests.conftest import adclick

# A right parameter beside another right one may be a wrong question: an end before its start, say; and a right day may not have
# been reconciled.
_CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "400", "403", "404", "422"]
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413", "414", "415", "422", "429"]
"""
_LEFT_OUT = "/v1/stream"
_FEW = 300


def borders(settings: Settings, config: Path, seed: str) -> bool:
    """Examples and borders, by schemathesis' own runner; returns whether all was well."""
    tool = Path(sys.executable).with_name("schemathesis")
    words = [
        "--config-file", str(config), "run", f"{settings.http}/openapi.json", "--checks", "all", "--exclude-path", _LEFT_OUT,
        "--header", f"Authorization: Bearer {settings.api_key.get_secret_value()}", "--phases", "examples,coverage",
        "--seed", seed, "--continue-on-failure", "--no-shrink",
    ]  # fmt: skip
    return subprocess.run([str(tool), *words], cwd=config.parent).returncode == 0


def at_random(settings: Settings, config: Path, seed: int, cases: int) -> bool:
    """So many cases for each operation; returns whether all was well."""
    schema = schemathesis.openapi.from_url(f"{settings.http}/openapi.json", config=SchemathesisConfig.from_path(config))
    headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    well = True
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation: Any = found.ok() if isinstance(found, Ok) else sys.exit(str(found.err()))
            for mode in GenerationMode if operation.path != _LEFT_OUT else ():
                began = time.monotonic()
                # Where there is nothing to make up, there is little to find.
                count = cases // 2 if operation.query else min(cases // 2, _FEW)
                statuses, error = _asked(operation, mode, session, headers, seed, count)
                told = ", ".join(f"{status}: {n:,}" for status, n in sorted(statuses.items()))
                took = f"{time.monotonic() - began:.0f} s"
                print(f"{operation.label:40} {mode.value:9} {statuses.total():7,} cases {took:>6}   {told}", flush=True)
                if error is not None:
                    print(error)
                    well = False
    return well


def _asked(
    operation: Any, mode: GenerationMode, session: requests.Session, headers: dict[str, str], seed: int, cases: int
) -> tuple[Counter[int], BaseException | None]:
    """How often each status came, and what was wrong."""
    statuses = Counter[int]()

    # Phases: nothing is made smaller, which takes longer than all questions together.
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call(session=session, headers=headers, timeout=30)
        statuses[answer.status_code] += 1
        try:
            case.validate_response(answer, headers=headers)
        except FailureGroup as failures:
            if not all(_is_right_on_the_wire(failure) for failure in failures.exceptions):
                raise

    try:
        ask()
    except Unsatisfiable:
        pass  # an operation without parameters has no wrong ones
    except BaseExceptionGroup as group:
        return statuses, group.exceptions[0]
    except Exception as error:
        return statuses, error
    return statuses, None


def _is_right_on_the_wire(failure: Exception) -> bool:
    """Whether what is wrong by the document cannot be seen: a list of one, by comma, is its only element; and the key is always sent."""
    told = re.findall(r"violates `(.*)", str(failure))
    seen = [
        one for one in told if not re.search(r"was array, became (integer|string)|required` \(was Authorization", one)
    ]
    return isinstance(failure, AcceptedNegativeData) and bool(told) and not seen


def main() -> None:
    """Run it once."""
    cases, seed = int(os.environ.get("CASES") or 5000), os.environ.get("SEED") or "1"
    with tempfile.TemporaryDirectory(prefix="adclick-fuzz-") as work:
        stack = Path(work) / "stack"
        done = adclick("up", "--detach", "--dir", str(stack), "--query-workers", "2")
        if done.returncode:
            sys.exit(done.stderr)
        try:
            settings = resolve(str(stack)).settings
            config = Path(work) / "schemathesis.toml"
            config.write_text(_CONFIG)
            well = borders(settings, config, seed)
            well &= at_random(settings, config, int(seed), cases)
        finally:
            adclick("down", "--dir", str(stack))
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
