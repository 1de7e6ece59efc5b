"""``python -m hqde``: the same as ``hqde``."""

from hqde.cli.app import main

main()
