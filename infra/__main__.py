"""`python -m infra` is the `adclick` command."""

from infra.cli import main

main()
