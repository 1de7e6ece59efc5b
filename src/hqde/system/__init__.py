"""HQDESystem: train, judge, predict and save in a few lines of Python."""

from hqde.system.hqde_system import HQDESystem, create_hqde_system

__all__ = ["HQDESystem", "create_hqde_system"]
