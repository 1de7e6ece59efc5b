"""How near HQDE's codecs come to the limit, on Gaussians and on real weight deltas, and what they cost.

    python benchmarks/compression_limit.py [--data cifar10:DIR | --delta FILE] [--quick] [--out FILE]

Three parts. (a) 2^20 Gaussian samples: bits per weight above rate-distortion's D(R) = σ² 2^(-2R), every
byte of the packet counted. (b) A real delta: bits per weight against squared error, beside other people's
formats, each by its published formula and with its scales counted; packets are measured, formulas are
computed. Without --delta, a `cnn` is trained here for a few rounds of four workers and one worker's last
delta is taken; biases, normalisations and running statistics are left out, as every format leaves them
dense. (c) 11.17 million numbers, one thread: encode and decode beside `x.clone()`, turn by turn, medians of
process time, and where it goes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor

from hqde.aggregation import Update
from hqde.backends import LocalBackend
from hqde.compression import (
    BLOCK,
    Codec,
    EntropyCodec,
    PackedCodec,
    Packet,
    decode,
    dense_ranges,
    dequantize_blocks,
    pack_blocks,
    unpack_blocks,
)
from hqde.compression.header import checksum
from hqde.compression.importance import CHUNK
from hqde.compression.quantize import quantize_levels, search_scale
from hqde.data import Split, load_splits
from hqde.models import model_spec
from hqde.rounds import Experiment
from hqde.seeding import generator
from hqde.testing.backend_checks import orders_of
from hqde.topology import Topology
from hqde.training import Recipe
from hqde.weights import Weights

SAMPLES, SPEED_SIZE = 2**20, 11_170_000
ROUNDS, WORKERS = 4, 4
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One format on one vector: ``error_db`` is 10 log10 of the squared error over the squared length."""

    name: str
    bits: float
    error_db: float

    @property
    def gap(self) -> float:
        """Bits above what a Gaussian would need for this error; real deltas are no Gaussians and go below."""
        return self.bits + self.error_db / (20 * math.log10(2))


def relative_db(decoded: Tensor, vector: Tensor) -> float:
    """Squared error over squared length, in dB."""
    error = (decoded.double() - vector.double()).square().sum() / vector.double().square().sum()
    return 10 * math.log10(max(float(error), 1e-30))


def line_of(name: str, codec: Codec, vector: Tensor) -> Line:
    """Encode, measure the packet, decode from its bytes."""
    packet = codec.encode(vector)
    decoded = decode(Packet.from_bytes(packet.to_bytes()), expected_count=len(vector))
    return Line(name, 8 * packet.nbytes / len(vector), relative_db(decoded, vector))


def codecs(*, adaptive: bool) -> Iterator[tuple[str, Codec]]:
    """HQDE's, by name."""
    for bits in (2, 3, 4, 6, 8):
        yield f"packed uniform {bits}", PackedCodec(bits=bits, allocation="uniform")
        if adaptive:
            yield f"packed adaptive {bits}", PackedCodec(bits=bits)
    for bits in (0.5, 1, 2, 3, 4):
        yield f"entropy zstd {bits}", EntropyCodec(bits=bits)
        yield f"entropy ans {bits}", EntropyCodec(bits=bits, stage="ans")


# -- other people's formats: (decoded, bits per weight) by their formulas -----------------------------------


def first_hqde(tensors: Sequence[Tensor], bits: int) -> tuple[Tensor, float]:
    """HQDE 0.1.5: one minimum and maximum per tensor, int(mean bits) bits for all of it."""
    restored = []
    for tensor in tensors:
        low, high = tensor.min(), tensor.max()
        scale = (high - low).clamp(min=1e-30) / (2**bits - 1)
        codes = ((tensor - low) / scale).round().clamp(0, 2**bits - 1)
        restored.append(codes * scale + low)
    return torch.cat(restored), bits + 64 * len(tensors) / sum(map(len, tensors))


def first_hqde_bits(tensors: Sequence[Tensor]) -> int:
    """The width that its importance gives a delta: int of the mean of 4 + 12 · importance."""
    scores = [(t.abs() - t.abs().min()) / (t.abs().max() - t.abs().min()).clamp(min=1e-30) for t in tensors]
    return int((4 + 12 * torch.cat(scores)).int().float().mean())


def rows_of(vector: Tensor, block: int) -> Tensor:
    """Blocks of a vector, the last one filled with zeros."""
    return torch.cat([vector, vector.new_zeros(-len(vector) % block)]).view(-1, block)


def absmax(vector: Tensor, bits: int, block: int) -> tuple[Tensor, float]:
    """Symmetric blockwise absmax with a float16 scale, as torchao's int8 and int4 weights."""
    rows, most = rows_of(vector, block), 2 ** (bits - 1) - 1
    scales = (rows.abs().amax(dim=1, keepdim=True) / most).clamp(min=6e-8).half().float()
    codes = (rows / scales).round().clamp(-most - 1, most)
    return (codes * scales).view(-1)[: len(vector)], bits + 16 / block


def asymmetric(vector: Tensor, bits: int, block: int) -> tuple[Tensor, float]:
    """Minimum to maximum of a group with a float16 scale and zero, HQQ's start before its optimiser."""
    rows = rows_of(vector, block)
    low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    scales = ((high - low) / (2**bits - 1)).clamp(min=6e-8).half().float()
    zeros = (-low / scales).half().float()
    codes = (rows / scales + zeros).round().clamp(0, 2**bits - 1)
    return ((codes - zeros) * scales).view(-1)[: len(vector)], bits + 32 / block


def nf4(vector: Tensor, block: int = 64) -> tuple[Tensor, float]:
    """bitsandbytes' NF4: quantiles of a Gaussian between -1 and 1, float32 absmax per block."""
    rows, table = rows_of(vector, block), torch.tensor(NF4)
    scales = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    codes = torch.bucketize(rows / scales, (table[1:] + table[:-1]) / 2)
    return (table[codes] * scales).view(-1)[: len(vector)], 4 + 32 / block


def qsgd(vector: Tensor, bits: int, block: int = 512) -> tuple[Tensor, float]:
    """QSGD: stochastic levels of |x| over the bucket's Euclidean norm, fixed-length codes, float32 norm."""
    rows, levels = rows_of(vector, block), 2 ** (bits - 1) - 1
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)
    draws = torch.rand(rows.shape, generator=generator(0, "benchmark", "qsgd"))
    codes = (rows.abs() / norms * levels + draws).floor()
    return (rows.sign() * codes * norms / levels).view(-1)[: len(vector)], bits + 32 / block


def others(vector: Tensor, tensors: Sequence[Tensor]) -> Iterator[Line]:
    """Everybody else."""
    first = first_hqde_bits(tensors)
    found: dict[str, tuple[Tensor, float]] = {
        f"first HQDE (its rule: {first} bits)": first_hqde(tensors, first),
        "first HQDE 4": first_hqde(tensors, 4),
        "first HQDE 8": first_hqde(tensors, 8),
        "fp16": (vector.half().float(), 16.0),
        "bf16": (vector.bfloat16().float(), 16.0),
        "nf4, block 64": nf4(vector),
        "qsgd 4, bucket 512": qsgd(vector, 4),
        "qsgd 8, bucket 512": qsgd(vector, 8),
    }
    for block in (64, 128):
        for bits in (4, 8):
            found[f"absmax int{bits}, block {block}"] = absmax(vector, bits, block)
        found[f"min-max int4, block {block}"] = asymmetric(vector, 4, block)
    for name, (decoded, bits) in found.items():
        yield Line(name, bits, relative_db(decoded, vector))


# -- a real delta -------------------------------------------------------------------------------------------


def trained_delta(source: str, images: int) -> list[Tensor]:
    """The quantisable tensors of one worker's delta after a few rounds of federated averaging."""
    splits = load_splits(source, max_train=images)
    experiment = Experiment(
        splits=splits,
        model=model_spec("cnn", input_shape=splits.schema.input_shape, num_outputs=splits.schema.num_classes),
        num_workers=WORKERS,
        epochs=ROUNDS,
        recipe=Recipe(batch_size=32),
        topology=Topology.fedavg(),
        partitioner=Split(),
    )
    backend = LocalBackend()
    backend.start(experiment.worker_specs(), splits.train)
    layout, weights = backend.layout(0), experiment.initial_weights(0)
    deltas: list[Tensor] = []
    for index in range(1, ROUNDS + 1):
        orders = [replace(order, start=weights) for order in orders_of(experiment, index)]
        updates = [outcome for outcome in backend.train(orders) if isinstance(outcome, Update)]
        deltas = [backend.fetch(update.delta) for update in updates]
        weights = Weights(weights.vector + torch.stack(deltas).mean(dim=0), updates[0].integers)
    backend.close()
    dense = dense_ranges(layout)
    kept = [s for s in layout.parameters if not any(a <= s.offset and s.end <= b for a, b in dense)]
    return [deltas[0][slot.offset : slot.end].clone() for slot in kept]


# -- speed --------------------------------------------------------------------------------------------------


def turns(ways: dict[str, Callable[[], object]], calls: int) -> dict[str, float]:
    """Median seconds of process time per call, the ways taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for call in range(calls + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if call:  # the first one warms up
                taken[name].append(time.process_time() - began)
    return {name: median(times) for name, times in taken.items()}


def speed(calls: int) -> dict[str, dict[str, float]]:
    """Encode and decode beside a clone."""
    draws = generator(0, "benchmark", "speed")
    sizes = torch.exp(torch.randn(SPEED_SIZE // 5000, generator=draws)).repeat_interleave(5000)
    vector = torch.randn(SPEED_SIZE, generator=draws) * sizes
    held = torch.empty_like(vector)  # a copy into memory that is there already: without a clone's page faults
    table: dict[str, dict[str, float]] = {}
    lines: list[tuple[str, Codec, int]] = [
        *((f"packed uniform {b}", PackedCodec(bits=b, allocation="uniform"), calls) for b in (2, 4, 8)),
        *((f"packed adaptive {b}", PackedCodec(bits=b), calls) for b in (2.5, 4, 8)),
        ("packed uniform 4, stochastic", PackedCodec(4, allocation="uniform", rounding="stochastic"), calls),
        ("entropy zstd 1", EntropyCodec(bits=1), max(1, calls // 4)),
        ("entropy ans 1", EntropyCodec(bits=1, stage="ans"), max(1, calls // 4)),
    ]
    for name, codec, number in lines:
        payload = codec.encode(vector, generator=generator(0, "benchmark")).payload

        def encode(codec: Codec = codec) -> object:
            return codec.encode(vector, generator=generator(0, "benchmark"))

        def read(payload: Tensor = payload) -> object:
            return decode(Packet(payload), expected_count=SPEED_SIZE)

        ways = {"clone": vector.clone, "copy": lambda: held.copy_(vector), "encode": encode, "decode": read}
        seconds = turns(ways, number)
        table[name] = seconds
        words = [f"{name:30s} clone {seconds['clone'] * 1e3:5.1f}, copy {seconds['copy'] * 1e3:4.1f} ms"]
        for way in ("encode", "decode"):
            rate = vector.nbytes / 1e9 / seconds[way]
            clones = seconds[way] / seconds["clone"]
            words.append(f"{way} {seconds[way] * 1e3:7.1f} ms = {clones:5.1f} clones = {rate:5.2f} GB/s")
        print("   ".join(words), flush=True)
    return table


def stages(calls: int) -> dict[str, float]:
    """Where a uniform 4-bit packet's time goes: nanoseconds per number, on one chunk."""
    rows = torch.randn(CHUNK, BLOCK, generator=generator(0, "benchmark", "stages"))
    workspace = torch.empty(3, *rows.shape)
    codes, scales = quantize_levels(rows, 4)
    packed = pack_blocks(codes, 4)
    whole = unpack_blocks(packed, 4)
    payload = PackedCodec(4, allocation="uniform").encode(rows.view(-1)).payload
    shapes = rows.abs() / rows.abs().amax(dim=1, keepdim=True)
    ways: dict[str, Callable[[], object]] = {
        "encode: all of the quantiser": lambda: quantize_levels(rows, 4, workspace=workspace),
        "encode: of it, the search of the scale": lambda: search_scale(shapes, 8, workspace[1:]),
        "encode: pack": lambda: pack_blocks(codes, 4),
        "both: checksum": lambda: checksum(payload.numpy().data),
        "decode: unpack": lambda: unpack_blocks(packed, 4),
        "decode: dequantise": lambda: dequantize_blocks(whole, scales, 4, out=workspace[0]),
    }
    many = {name: (lambda way=way: [way() for _ in range(20)]) for name, way in ways.items()}
    return {name: s / 20 / rows.numel() * 1e9 for name, s in turns(many, calls).items()}


def show(title: str, lines: Sequence[Line]) -> None:
    """A table, fewest bits first."""
    print(f"\n{title}\n{'format':34s} {'bits/weight':>11s} {'error dB':>9s} {'gap':>7s}")
    for line in sorted(lines, key=lambda line: line.bits):
        print(f"{line.name:34s} {line.bits:11.3f} {line.error_db:9.2f} {line.gap:7.3f}")


def main() -> None:
    """Run the three parts and keep what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="what the cnn is trained on, e.g. cifar10:DIR")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--delta", type=Path, help="a safetensors file; its floating tensors are the delta")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    calls = 3 if arguments.quick else 9

    gaussian = torch.randn(
        2**17 if arguments.quick else SAMPLES, generator=generator(0, "benchmark", "gaussian")
    )
    limit = [line_of(name, codec, gaussian) for name, codec in codecs(adaptive=False)]
    show(f"(a) {len(gaussian)} Gaussian samples", limit)

    if arguments.delta:
        found = load_file(arguments.delta).values()
        tensors = [t.float().reshape(-1) for t in found if t.is_floating_point() and t.numel() >= 1024]
    else:
        tensors = trained_delta(arguments.data, arguments.images)
    vector = torch.cat(tensors)
    real = [line_of(name, codec, vector) for name, codec in codecs(adaptive=True)]
    real += others(vector, tensors)
    show(f"(b) a real delta: {len(vector)} weights in {len(tensors)} tensors", real)

    print(f"\n(c) {SPEED_SIZE} float32, one thread")
    table = speed(calls)
    print("\nwhere it goes, ns per number")
    parts = stages(calls)
    for name, nanoseconds in parts.items():
        print(f"{name:42s} {nanoseconds:6.2f}")
    if arguments.out:
        found_all = {
            "gaussian": [asdict(line) | {"gap": line.gap} for line in limit],
            "delta": [asdict(line) | {"gap": line.gap} for line in real],
            "speed_s": table,
            "stages_ns": parts,
        }
        arguments.out.write_text(json.dumps(found_all, indent=1))


if __name__ == "__main__":
    main()
