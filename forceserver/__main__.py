"""`python -m forceserver`: the same command line, where the environment's scripts are not on PATH."""

from forceserver.cli import main

main()
