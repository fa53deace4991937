"""`python -m infra` is the `adclick` command."""

from infra.cli.main import main

main()
