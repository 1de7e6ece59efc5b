"""Saving and loading an ensemble: a bundle with one file per member and everything else in the manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hqde.checkpoints import Bundle, measure_bundle, read_bundle, write_bundle
from hqde.data import Normalization, Schema, TargetScale
from hqde.ensemble.combiners import Combiner, combiner_settings, make_combiner
from hqde.ensemble.low_memory import WithoutDraws, keep_packed
from hqde.ensemble.matrix_scaling import MatrixScaling
from hqde.ensemble.members import Member
from hqde.ensemble.packed_weights import PackedWeights, read_packed
from hqde.ensemble.prediction import Loss
from hqde.errors import ArtefactError, ConfigError, PacketError, PreconditionError
from hqde.models import BUILT_IN, ModelSpec
from hqde.seeding import seeded

if TYPE_CHECKING:
    from hqde.ensemble.ensemble import Ensemble

KIND = "hqde-ensemble"
CURE = "copy it again or retrain"

ModelClass = Callable[..., nn.Module]


def artefact_content(ensemble: Ensemble) -> dict[str, Any]:
    """What an ensemble is made of: the arguments of ``write_artefact``, and those of ``Ensemble``."""
    return {
        "members": ensemble.members,
        "schema": ensemble.schema,
        "normalization": ensemble.normalization,
        "target_scale": ensemble.target_scale,
        "combiner": ensemble.combiner,
        "temperature": ensemble.temperature,
        "matrix_scaling": ensemble.matrix_scaling,
        "loss": ensemble.loss,
        "metrics": ensemble.metrics,
        "provenance": ensemble.provenance,
    }


def write_artefact(path: str | os.PathLike[str], **content: Any) -> None:
    """Write the artefact at ``path``; see ``Ensemble.save``.

    The manifest holds no times and no paths, and equal arguments give equal bytes.

    Args:
        path: the directory.
        content: see ``artefact_content``.

    Raises:
        PreconditionError: a member's spec does not build the model again, a compressed member was changed,
            or ``path`` holds other files.
        ArtefactError: the disk refuses.
    """
    manifest, tensors = _assemble(**content)
    write_bundle(path, manifest=manifest, tensors=tensors, error=ArtefactError)


def measure_artefact(**content: Any) -> int:
    """Bytes of the directory that ``write_artefact`` would write.

    Raises:
        PreconditionError: as ``write_artefact``, but for the path.
    """
    manifest, tensors = _assemble(**content)
    return measure_bundle(manifest=manifest, tensors=tensors)


def _assemble(
    *,
    members: Sequence[Member],
    schema: Schema,
    normalization: Normalization,
    target_scale: TargetScale,
    combiner: Combiner,
    temperature: float,
    matrix_scaling: MatrixScaling | None,
    loss: Loss,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Manifest and tensors of the bundle."""
    signatures: dict[tuple[ModelSpec, float | None], dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    entries: list[dict[str, Any]] = []
    for position, member in enumerate(members):
        key = (member.spec, member.dropout_rate)
        if key not in signatures:
            signatures[key] = _signature(_build(member.spec, member.dropout_rate).state_dict())
        state = member.model.state_dict()
        difference = _difference(_signature(state), signatures[key])
        if difference:
            raise PreconditionError(
                f"member {member.member_id} could not be loaded again: its weights are not what its spec "
                f"{member.spec.name!r} builds ({difference})."
            )
        stem = f"member-{position:03d}"
        tensors[stem] = state if member.packed is None else _pack(member, member.packed, state)
        packing = {} if member.packed is None else {"packed": member.packed.to_dict()}
        entries.append(
            {
                **packing,
                "member": member.member_id,
                "file": f"{stem}.safetensors",
                "spec": member.spec.to_dict(),
                "dropout_rate": member.dropout_rate,
                "score": float(member.score),
                "parameters": member.num_parameters,
            }
        )
    manifest = {
        "kind": KIND,
        "versions": {"hqde": version("hqde"), "torch": str(torch.__version__)},
        "schema": schema.to_dict(),
        "normalization": normalization.to_dict(),
        "target_scale": target_scale.to_dict(),
        "loss": loss,
        "combiner": combiner.name,
        **({"combiner_settings": settings} if (settings := combiner_settings(combiner)) else {}),
        "temperature": temperature,
        **({} if matrix_scaling is None else {"matrix_scaling": matrix_scaling.to_dict()}),
        "members": entries,
        "metrics": dict(metrics),
        "provenance": dict(provenance),
    }
    return manifest, tensors


def read_artefact(
    path: str | os.PathLike[str],
    *,
    model_class: ModelClass | Mapping[str, ModelClass] | None = None,
    low_memory: bool = False,
) -> dict[str, Any]:
    """What ``write_artefact`` was given, without the path; see ``Ensemble.load``.

    Raises:
        ArtefactError: one sentence that names the file or member and what is wrong with it.
    """
    bundle = read_bundle(path, error=ArtefactError)
    manifest = bundle.manifest
    if manifest.get("kind") != KIND:
        raise ArtefactError(
            f"{path} is no saved ensemble (its kind is {manifest.get('kind')!r}): check the path."
        )
    try:
        scaling = manifest.get("matrix_scaling")
        specs = [ModelSpec.from_dict(entry["spec"]) for entry in manifest["members"]]
        content = {
            "schema": Schema.from_dict(manifest["schema"]),
            "normalization": Normalization.from_dict(manifest["normalization"]),
            "target_scale": TargetScale.from_dict(manifest["target_scale"]),
            "combiner": make_combiner(manifest["combiner"], manifest.get("combiner_settings")),
            "temperature": float(manifest["temperature"]),
            "matrix_scaling": MatrixScaling.from_dict(scaling) if scaling else None,
            "loss": manifest["loss"],
            "metrics": dict(manifest["metrics"]),
            "provenance": dict(manifest["provenance"]),
        }
        factories = _choose_classes([spec.name for spec in specs], model_class)
        members = [
            _load_member(bundle, entry, spec, factories.get(spec.name), path, low_memory)
            for entry, spec in zip(manifest["members"], specs, strict=True)
        ]
    except ArtefactError:
        raise
    except (KeyError, TypeError, ValueError) as problem:
        raise ArtefactError(
            f"{path}: manifest.json describes no ensemble ({problem!r}): {CURE}."
        ) from problem
    return {"members": members, **content}


def _load_member(
    bundle: Bundle,
    entry: Mapping[str, Any],
    spec: ModelSpec,
    factory: ModelClass | None,
    path: Any,
    low_memory: bool,
) -> Member:
    file, packing = str(entry["file"]), entry.get("packed")
    state = bundle.tensors[file.removesuffix(".safetensors")]
    spec = ModelSpec(spec.name, spec.options, factory)
    dropout_rate = entry["dropout_rate"]
    if low_memory and packing is None:
        raise ArtefactError(f"{path}: {file} holds full weights: compress it first, with hqde compress.")
    try:
        # Of a built-in network it is known that the state fills all that is drawn.
        with WithoutDraws() if low_memory and spec.name in BUILT_IN else nullcontext():
            model = _build(spec, dropout_rate)
    except ConfigError as problem:
        cure = "" if spec.name in BUILT_IN else " Give the class: Ensemble.load(path, model_class=YourModel)."
        raise ArtefactError(
            f"{path}: member {entry['member']} cannot be built: {problem}.{cure}"
        ) from problem
    signature = _signature(model.state_dict())
    packed, found = None, _signature(state)
    try:
        if packing is not None:
            packed, state = read_packed(packing, state, signature)
            state |= packed.decode_halved() if low_memory else packed.decode()
            found = {name: signature[name] for name in packed.names} | _signature(state)
    except PacketError as problem:
        raise ArtefactError(f"{path}: {file} cannot be unpacked: {problem}.") from problem
    difference = _difference(found, signature)
    if difference:
        raise ArtefactError(
            f"{path}: {file} does not fit the architecture {spec.name!r} ({difference}): load it with the "
            "class it was saved with."
        )
    model.load_state_dict(state, strict=not low_memory)
    if low_memory and packed is not None:
        keep_packed(model, packed)
    return Member(int(entry["member"]), spec, model, float(entry["score"]), dropout_rate, packed)


def _pack(member: Member, packed: PackedWeights, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a compressed member's file."""
    changed = packed.changed(state)
    if changed is not None:
        raise PreconditionError(
            f"member {member.member_id} was compressed and its {changed} changed since: compress it again, "
            "or set member.packed = None to save full weights."
        )
    return {name: tensor for name, tensor in state.items() if name not in packed.names} | packed.to_tensors()


def _build(spec: ModelSpec, dropout_rate: float | None) -> nn.Module:
    with seeded(0, "artefact"):  # the starting weights are overwritten; the caller's random streams are not
        return spec.build(dropout_rate=dropout_rate)


def _choose_classes(
    names: Sequence[str], model_class: ModelClass | Mapping[str, ModelClass] | None
) -> dict[str, ModelClass]:
    """Which given class stands for which saved name; built-in architectures need none."""
    own = sorted({name for name in names if name not in BUILT_IN})
    if model_class is None:
        return {}
    if isinstance(model_class, Mapping):
        unknown = sorted(set(model_class) - set(own))
        if unknown:
            raise ArtefactError(
                f"model_class names {unknown}, and the artefact holds {own or 'built-in models'}."
            )
        return dict(model_class)
    if len(own) <= 1:
        return dict.fromkeys(own, model_class)
    title = getattr(model_class, "__qualname__", "")
    fitting = [name for name in own if name.partition(":")[2] == title]
    if len(fitting) != 1:
        raise ArtefactError(
            f"the artefact holds {len(own)} classes ({', '.join(own)}): give model_class as a dict of them."
        )
    return {fitting[0]: model_class}


def _signature(state: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {
        name: (tuple(tensor.shape), tensor.dtype)
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }


def _difference(
    found: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
) -> str:
    """The first difference between two sets of tensors, in words; empty if there is none."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        return f"{missing[0]} is missing"
    if extra:
        return f"{extra[0]} is unknown there"
    for name, (shape, dtype) in found.items():
        if (shape, dtype) != expected[name]:
            wanted_shape, wanted_dtype = expected[name]
            return f"{name} is {shape} {dtype}, expected {wanted_shape} {wanted_dtype}"
    return ""
