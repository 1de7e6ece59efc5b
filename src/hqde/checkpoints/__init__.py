"""Checkpoints: directories of safetensors and one JSON manifest, atomic, checksummed, without pickle."""

from hqde.checkpoints.bundle import Bundle, read_bundle, read_manifest
from hqde.checkpoints.store import CheckpointStore
from hqde.checkpoints.writing import measure_bundle, write_bundle

__all__ = ["Bundle", "CheckpointStore", "measure_bundle", "read_bundle", "read_manifest", "write_bundle"]
