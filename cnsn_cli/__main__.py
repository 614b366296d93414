"""Runs the command line for `python -m cnsn_cli`, which torchrun needs."""

from cnsn_cli.main import main

if __name__ == "__main__":
    main()
