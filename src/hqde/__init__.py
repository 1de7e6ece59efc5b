"""Hierarchical quantum-inspired distributed ensemble learning."""

from importlib.metadata import version

__version__ = version("hqde")
