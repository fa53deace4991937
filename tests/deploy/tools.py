"""The tools of `make deploy-test`: `python -m tests.deploy.tools` installs those that are missing, into .venv/deploy-tools.

They are no dependencies of the product, nor of its other tests: 300 MB, most of it schemas of Kubernetes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"
_LOCK = Path(__file__).with_name("tools.lock")
_FOLDER = Path(sys.prefix) / "deploy-tools"
_STAMP = _FOLDER / "installed.lock"


def path_of(tool: str) -> str:
    """The program of that name: of these tools, or of the machine. Raises FileNotFoundError."""
    own = _FOLDER / "bin" / tool
    found = str(own) if own.exists() else shutil.which(tool)
    if found is None:
        raise FileNotFoundError(f"{tool} is missing; `make deploy-test` installs it")
    return found


def main() -> int:
    """Install what is missing. Exit 1, with a line, where that is not possible."""
    if not _STAMP.exists() or _STAMP.read_bytes() != _LOCK.read_bytes():
        print("deploy-test: installing kubernetes-validate, hadolint and compose-lint", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(_FOLDER)], check=True)
        pip = [str(_FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(_LOCK)]
        subprocess.run(pip, check=True)
        shutil.copyfile(_LOCK, _STAMP)
    if not (_FOLDER / "bin" / "helm").exists() and shutil.which("helm") is None:
        go = shutil.which("go")
        if go is None:
            print("deploy-test: neither helm nor go is here; install one of them", file=sys.stderr)
            return 1
        print("deploy-test: building helm (some minutes)", file=sys.stderr)
        subprocess.run([go, "install", HELM], check=True, env=os.environ | {"GOBIN": str(_FOLDER / "bin")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
