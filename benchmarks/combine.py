"""What combining and selecting members buys: CIFAR-10 and Fashion-MNIST, pools of four kinds.

    python benchmarks/combine.py --data cifar10:DIR fashion-mnist:DIR [--out DIR] [--fit-rows 5000]
                                 [--splits 5] [--seed 0] [--pools mixed …] [--only-selection]

Members of the pool `mixed` differ in width, training rows and epochs; those of `stages` in rows and epochs
alone, so that each costs the same in prediction; those of `specialists` saw shards with other shares of the
classes (Dirichlet, alpha 0.3); those of `equal` differ in their random streams alone.
Their predictions on rows that no member was trained on (the validation split and the test file) are kept in
`--out`, one `.npz` per pool, so that a second call only judges. `--splits` times these rows are divided at
random: combiners and temperatures are fitted, and members selected, on `--fit-rows` of them and judged on
the others. Figures are means over the splits; NLL in nats. One thread: training takes about twenty minutes,
judging about ten.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dimod
import numpy as np
import torch
from dwave.samplers import SimulatedAnnealingSampler
from torch import Tensor

from hqde.backends import LocalBackend
from hqde.data import Augmentation, Dirichlet, Replicate, Splits, SubsetExamples, load_splits
from hqde.ensemble import (
    COMBINERS,
    FittableCombiner,
    apply_temperature,
    fit_temperature,
    make_combiner,
)
from hqde.ensemble.evaluation import classification_figures
from hqde.errors import HqdeError
from hqde.models import model_spec
from hqde.quantum import Budget, caruana, choose_members, error_gram, selection_bqm
from hqde.quantum.search import brute_force
from hqde.rounds import Engine, Experiment
from hqde.seeding import generator
from hqde.topology import Topology
from hqde.training import Diversity, Recipe

TRAIN_IMAGES = 25_000  # a fifth of them held out


@dataclass(frozen=True)
class Family:
    """Members that are trained alike."""

    members: int
    channels: tuple[int, ...]
    rows: int
    epochs: int
    alpha: float | None = None


POOLS: dict[str, tuple[Family, ...]] = {
    "mixed": (
        Family(4, (32, 64, 128), 10_000, 7),
        Family(4, (16, 32, 64), 10_000, 5),
        Family(4, (16, 32), 3_000, 4),
        Family(4, (8, 16), 10_000, 2),
    ),
    "stages": (
        Family(4, (16, 32, 64), 20_000, 6),
        Family(4, (16, 32, 64), 10_000, 4),
        Family(4, (16, 32, 64), 4_000, 4),
        Family(4, (16, 32, 64), 10_000, 1),
    ),
    "specialists": (Family(12, (16, 32), 20_000, 6, alpha=0.3),),
    "equal": (Family(8, (16, 32, 64), 10_000, 6),),
}


def train(splits: Splits, pool: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (m, n, c) of a pool's members on all held-out rows, and the targets (n,)."""
    probs, targets = [], torch.cat([splits.validation.targets, splits.test.targets])
    for number, family in enumerate(POOLS[pool]):
        began = time.perf_counter()
        chosen = torch.randperm(len(splits.train), generator=generator(seed, "rows", number))[: family.rows]
        experiment = Experiment(
            splits=replace(splits, train=SubsetExamples(splits.train, chosen)),
            model=model_spec(
                "cnn",
                input_shape=splits.schema.input_shape,
                num_outputs=splits.schema.num_classes,
                options={"channels": list(family.channels)},
            ),
            num_workers=family.members,
            epochs=family.epochs,
            recipe=Recipe(precision="bf16-mixed"),
            topology=Topology.independent(),
            diversity=Diversity(bootstrap=pool in ("mixed", "stages")),
            partitioner=Replicate() if family.alpha is None else Dirichlet(alpha=family.alpha),
            augmentation=Augmentation(flip=True),
            evaluate_every=10_000,
            calibrate=False,
            seed=seed + number,
        )
        ensemble = Engine(experiment, LocalBackend()).run().ensemble
        found = [ensemble.predict_members(rows) for rows in (splits.validation, splits.test)]
        probs.append(torch.cat(found, dim=1))
        right = [float((p.argmax(1) == targets).double().mean()) for p in probs[-1]]
        spent = time.perf_counter() - began
        print(f"  {pool} {family}: accuracy {[f'{r:.3f}' for r in right]}, {spent:.0f} s", flush=True)
    return torch.cat(probs), targets


def predictions(source: str, pool: str, seed: int, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """`train`, or what an earlier call kept of it."""
    file = folder / f"{source.partition(':')[0]}-{pool}-{seed}.npz"
    if not file.exists():
        splits = load_splits(source, max_train=TRAIN_IMAGES, validation_fraction=0.2)
        probs, targets = train(splits, pool, seed)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, probs=probs.numpy(), targets=targets.numpy())
    kept = np.load(file)
    return torch.from_numpy(kept["probs"]), torch.from_numpy(kept["targets"])


Figures = dict[str, list[dict[str, float]]]
KEPT = 4  # members of a selection


def operations(source: str, pool: str) -> tuple[float, ...]:
    """Multiplications that each member of a pool takes for one picture, in convolutions and linear layers."""
    shape = (3, 32, 32) if source.startswith("cifar10") else (1, 28, 28)
    costs: list[float] = []
    for family in POOLS[pool]:
        options = {"channels": list(family.channels)}
        model = model_spec("cnn", input_shape=shape, num_outputs=10, options=options).build().eval()
        counts: list[int] = []
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.register_forward_hook(
                    lambda layer, _, out: counts.append(layer.weight.numel() * out.numel() // out.shape[1])  # noqa: B023
                )
        model(torch.zeros(1, *shape))
        costs += [float(sum(counts))] * family.members
    return tuple(costs)


def judge(
    name: str,
    probs: Tensor,
    targets: Tensor,
    fit: Tensor,
    rest: Tensor,
    *,
    tempered: bool = True,
    shares: Sequence[float] | None = None,
) -> dict[str, float]:
    """A combiner fitted on some rows, and its figures on others."""
    combiner = make_combiner(name)
    if shares is not None:
        combiner = make_combiner("entanglement", {"shares": list(shares)})  # a linear pool with these weights
    elif isinstance(combiner, FittableCombiner):
        combiner = combiner.fit(probs[:, fit], targets[fit])
    ones = torch.ones(len(probs))
    combined = combiner.combine(probs[:, rest], ones)
    if tempered:
        temperature = fit_temperature(combiner.combine(probs[:, fit], ones), targets[fit])
        combined = apply_temperature(combined, temperature)
    return classification_figures(combined, targets[rest])


def combine(probs: Tensor, targets: Tensor, fit: Tensor, rest: Tensor, found: Figures) -> None:
    """Every combiner, with and without temperature, of all members."""
    for name in ("auto", *COMBINERS):
        for tempered in (False, True):
            label = f"{name} + T" if tempered else name
            found.setdefault(label, []).append(judge(name, probs, targets, fit, rest, tempered=tempered))


def select(
    probs: Tensor, targets: Tensor, fit: Tensor, rest: Tensor, costs: Sequence[float], found: Figures
) -> None:
    """All, the best, the top four, Caruana's and the selected four, each with a temperature.

    ``costs`` are the members' operations; the last selection is of four members within a quarter of all.
    """
    gram = error_gram(probs[:, fit], targets[fit])
    ranking = gram.diagonal().argsort(stable=True).tolist()
    picks = caruana(probs[:, fit], targets[fit], KEPT)
    picked = [member for member, count in enumerate(picks) if count]
    sets = {
        "all": range(len(probs)),
        "best single": ranking[:1],
        f"top {KEPT}": ranking[:KEPT],
        f"selected {KEPT}": choose_members(gram, KEPT).members,
    }
    budget = Budget("operations", tuple(costs), sum(costs) / 4)
    if sum(sorted(costs)[:KEPT]) <= budget.limit:
        within = choose_members(gram, KEPT, budgets=[budget])
        sets[f"selected {KEPT} in a quarter of the operations"] = within.members
    for label, members in sets.items():
        chosen = probs[list(members)]
        for name, word in (("mean", "mean + T"), ("log_pool", "log pool + T"), ("stacking", "stacking + T")):
            if len(chosen) > 1 or name == "mean":
                figures = judge(name, chosen, targets, fit, rest)
                figures["operations"] = sum(costs[member] for member in members) / sum(costs)
                found.setdefault(f"{label}, {word}", []).append(figures)
    shares = [picks[member] / KEPT for member in picked]
    greedy = judge("mean", probs[picked], targets, fit, rest, shares=shares)
    greedy["operations"] = sum(costs[member] for member in picked) / sum(costs)
    found.setdefault(f"greedy (Caruana), {KEPT} picks + T", []).append(greedy)


def table(found: Figures, against: str) -> str:
    """Means over the splits, and how the NLL stands against one row, split by split."""
    lines = [
        f"| | operations | accuracy | NLL | Brier | ECE | NLL minus that of {against}: worst, not above |",
        "|---|---|---|---|---|---|---|",
    ]
    base = [split["nll"] for split in found[against]]
    for label, splits in found.items():
        accuracy, nll, brier, ece = (
            sum(split[key] for split in splits) / len(splits) for key in ("accuracy", "nll", "brier", "ece")
        )
        share = sum(split.get("operations", 1.0) for split in splits) / len(splits)
        gaps = [split["nll"] - other for split, other in zip(splits, base, strict=True)]
        better = sum(gap <= 0 for gap in gaps)
        figures = f"{accuracy:.4f} | {nll:.4f} | {brier:.4f} | {ece:.4f}"
        lines.append(
            f"| {label} | {100 * share:.0f} % | {figures} | {max(gaps):+.4f}, {better} of {len(gaps)} |"
        )
    return "\n".join(lines)


def few_rows(probs: Tensor, targets: Tensor, num_splits: int, seed: int) -> str:
    """NLL minus that of the mean, each with a temperature, when few rows are there to fit them."""
    names = ("auto", "stacking", "entanglement")
    lines = [f"| rows to fit | {' | '.join(names)} |", "|---|---|---|---|"]
    for count in (50, 100, 200, 500, 1000, 2000):
        gaps: dict[str, list[float]] = {name: [] for name in names}
        for split in range(num_splits):
            order = torch.randperm(len(targets), generator=generator(seed, "few", split))
            fit, rest = order[:count], order[2000:]
            mean = judge("mean", probs, targets, fit, rest)["nll"]
            for name in names:
                gaps[name].append(judge(name, probs, targets, fit, rest)["nll"] - mean)
        cells = [
            f"{sum(gap) / len(gap):+.4f}, worst {max(gap):+.4f}, above {sum(one > 0 for one in gap)}"
            for gap in gaps.values()
        ]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sizes(num_pools: int, seed: int) -> str:
    """How an annealer fares when the size is asked for by a penalty, and by a price: 24 members, 6 chosen."""
    penalty, price, wrong = 0, 0, 0
    for pool in range(num_pools):
        draws = generator(seed, "sizes", pool)
        targets = torch.randint(4, (80,), generator=draws)
        hit = torch.nn.functional.one_hot(targets, 4).double()
        skill = 0.3 + 1.2 * torch.rand(24, 1, 1, generator=draws).double()
        noise = torch.randn(24, 80, 4, generator=draws).double()
        gram = error_gram(torch.softmax(2 * (skill * hit + noise), 2), targets)
        best = brute_force(gram.numpy(), 6)
        model: dimod.BinaryQuadraticModel = selection_bqm(gram, 6)
        weight = 1.01 * max(
            abs(b) + sum(abs(q) for _, q in model.iter_neighborhood(v)) for v, b in model.linear.items()
        )
        for i in range(24):
            model.add_linear(i, weight * (1 - 2 * 6))
            for j in range(i + 1, 24):
                model.add_quadratic(i, j, 2 * weight)
        lowest = (
            SimulatedAnnealingSampler().sample(model, num_reads=20, num_sweeps=1000, seed=pool).first.sample
        )
        chosen = tuple(member for member, one in lowest.items() if one)
        penalty, wrong = penalty + (chosen == best), wrong + (len(chosen) != 6)
        price += choose_members(gram, 6, sampler="sa", seed=pool).members == best
    return (
        f"simulated annealing, {num_pools} pools: with a penalty it finds the best set {penalty} times (a "
        f"set of another size {wrong} times), with a price and swaps {price} times"
    )


def main() -> None:
    """Train what is missing, then judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="cifar10:DIR fashion-mnist:DIR")
    parser.add_argument("--out", type=Path, default=Path("combine"), help="where predictions are kept")
    parser.add_argument("--fit-rows", type=int, default=5000)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--pools", nargs="+", choices=list(POOLS), default=list(POOLS))
    parser.add_argument("--only-selection", action="store_true", help="leave out the combiners' tables")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases, better = 0, 0
    try:
        for source in given.data:
            for pool in given.pools:
                probs, targets = predictions(source, pool, given.seed, given.out)
                costs = operations(source, pool)
                combined: Figures = {}
                selected: Figures = {}
                for split in range(given.splits):
                    order = torch.randperm(len(targets), generator=generator(given.seed, "split", split))
                    fit, rest = order[: given.fit_rows], order[given.fit_rows :]
                    if not given.only_selection:
                        combine(probs, targets, fit, rest, combined)
                    select(probs, targets, fit, rest, costs, selected)
                rows = f"{given.fit_rows} rows to fit, {len(targets) - given.fit_rows} to judge"
                name = source.partition(":")[0]
                print(f"\n## {name}, {pool} pool of {len(probs)}, {rows}\n")
                if combined:
                    print(table(combined, "mean + T"))
                print(f"\n### {KEPT} of {len(probs)}\n\n{table(selected, 'all, mean + T')}")
                if not combined:
                    continue
                print(
                    f"\n### few rows\n\n{few_rows(probs, targets, 4 * given.splits, given.seed)}", flush=True
                )
                pairs = zip(combined["auto + T"], combined["mean + T"], strict=True)
                gaps = [auto["nll"] <= mean["nll"] for auto, mean in pairs]
                cases, better = cases + len(gaps), better + sum(gaps)
        if cases:
            print(f"\nauto + T is not above mean + T in NLL in {better} of {cases} cases")
        print(sizes(20, given.seed))
    except HqdeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
