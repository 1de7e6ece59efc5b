"""How well `hqde plan` chooses: its choice and its prediction beside whole runs of every candidate.

    python benchmarks/planner.py [--cases mlp cnn resnet18 transformer tabular] [--repeats 3] [--json FILE]

For each case the planner probes this machine anew. Then every candidate that it could take trains the whole
run, in turns. Printed are the median seconds of the rounds of each, the chosen one's over those of the
quickest, and the prediction over what the chosen one took. Data are the digits and random numbers of other
shapes: the arithmetic is the same. About ten minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hqde.data import Splits, TensorExamples, load_splits, make_splits
from hqde.models import ModelSpec, model_spec
from hqde.planning import RunPlanner
from hqde.rounds import Engine, Experiment
from hqde.topology import Topology


class Tokens(nn.Module):
    """A transformer that classifies sequences ``(n, tokens, width)``."""

    def __init__(self, width: int = 64, layers: int = 2, num_outputs: int = 10) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(n, classes)``."""
        out: Tensor = self.head(self.body(tokens).mean(1))
        return out


def random_rows(
    count: int, shape: tuple[int, ...], *, validation: int | None = None, test: int = 10
) -> Splits:
    """Images of bytes, or other rows of floats, in ten classes; unless told, a tenth are validation rows."""
    draws = torch.Generator().manual_seed(0)

    def rows(number: int) -> TensorExamples:
        values = torch.randn(number, *shape, generator=draws)
        pixels = (values * 40 + 128).clamp(0, 255).to(torch.uint8)
        return TensorExamples(pixels if len(shape) == 3 else values, torch.arange(number) % 10)

    held_out = rows(count // 10 if validation is None else validation)
    return make_splits("random", rows(count), validation=held_out, test=rows(test), task="classification")


def experiment(splits: Splits, model: ModelSpec, workers: int, epochs: int) -> Experiment:
    """Independent workers, with the defaults."""
    return Experiment(
        splits=splits,
        model=model,
        num_workers=workers,
        epochs=epochs,
        topology=Topology.independent(),
        calibrate=False,
    )


def images(name: str, count: int, workers: int) -> Experiment:
    """A network of HQDE's on random images of CIFAR-10's shape."""
    spec = model_spec(name, input_shape=(3, 32, 32), num_outputs=10)
    return experiment(random_rows(count, (3, 32, 32)), spec, workers, 1)


CASES: dict[str, Callable[[], Experiment]] = {
    "mlp": lambda: experiment(
        load_splits("digits"), model_spec("mlp", input_shape=(1, 8, 8), num_outputs=10), 16, 20
    ),
    "cnn": lambda: images("cnn", 4_000, 4),
    "resnet18": lambda: images("resnet18", 384, 2),
    "transformer": lambda: experiment(random_rows(3_000, (32, 64)), ModelSpec("planner:Tokens", {}), 4, 1),
    "tabular": lambda: experiment(
        random_rows(20_000, (20,)), model_spec("mlp", input_shape=(20,), num_outputs=10), 8, 2
    ),
}


def measure(case: Experiment, repeats: int) -> dict[str, Any]:
    """What the planner says, and what every candidate then takes."""
    plan = RunPlanner().plan(case)
    able = [probe.candidate for probe in plan.probes if not probe.problem]
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in able}
    for _ in range(repeats):
        for candidate in able:
            result = Engine(candidate.apply(case), candidate.make_backend()).run()
            seconds[candidate.name].append(result.state.totals.wall_s)
    return {
        "chosen": plan.chosen.name,
        "predicted_s": plan.predicted_s,
        "refused": [f"{p.candidate.name}: {p.problem}" for p in plan.probes if p.problem],
        "seconds": seconds,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """One line for each case."""
    lines = [
        "| case | chosen | s | quickest | s | chosen / quickest | predicted s | predicted / actual |",
        "|---" * 8 + "|",
    ]
    for name, case in found.items():
        took = {candidate: median(seconds) for candidate, seconds in case["seconds"].items()}
        best, chosen = min(took, key=lambda c: took[c]), case["chosen"]
        lines.append(
            f"| {name} | {chosen} | {took[chosen]:.2f} | {best} | {took[best]:.2f} | "
            f"{took[chosen] / took[best]:.2f} | {case['predicted_s']:.2f} | "
            f"{case['predicted_s'] / took[chosen]:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure case after case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    for name in given.cases:
        found[name] = measure(CASES[name](), given.repeats)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{table(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
