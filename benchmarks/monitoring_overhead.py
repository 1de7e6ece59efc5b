"""What watching a run costs: pairs of trainings with and without samples, and the time of a single sample.

    python benchmarks/monitoring_overhead.py --pairs 7 --epochs 8

On a machine that does other things as well, the processor time says more than the wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hqde.monitoring import Monitoring, Probes
from hqde.rounds import RunDirectory, RunObserver


def train(out: Path, epochs: int, interval_s: float) -> tuple[float, float]:
    """Wall and processor seconds of one training, in a process of its own."""
    command = [sys.executable, "-m", "hqde", "train", "--model", "cnn", "--workers", "2", "--groups", "2"]
    command += ["--epochs", str(epochs), "--set", "run.threads=1", "--out", str(out)]
    command += ["--set", f"monitoring.interval_s={interval_s}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall_s = json.loads((out / "metrics.json").read_text())["train"]["wall_s"]
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def sample_ms(folder: Path, count: int = 500) -> float:
    """Processor time of one sample: read, judged, written."""
    probes = Probes(disk=folder)
    with RunObserver(Monitoring(), RunDirectory(folder)) as observer:
        began = time.process_time()
        for _ in range(count):
            observer._on_sample(probes.sample())
        return 1e3 * (time.process_time() - began) / count


def main() -> None:
    """Run the pairs, in turning order, and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"one sample takes {sample_ms(folder):.2f} ms of processor time")
        walls, processors = [], []
        for pair in range(given.pairs):
            seconds = {}
            for interval_s in (0.0, 1.0) if pair % 2 == 0 else (1.0, 0.0):
                seconds[interval_s] = train(folder / f"{pair}-{interval_s}", given.epochs, interval_s)
            walls.append(seconds[1.0][0] / seconds[0.0][0])
            processors.append(seconds[1.0][1] / seconds[0.0][1])
            print(f"pair {pair + 1}: wall {walls[-1]:.4f}, processor {processors[-1]:.4f}", flush=True)
        print(f"median: wall {statistics.median(walls):.4f}, processor {statistics.median(processors):.4f}")


if __name__ == "__main__":
    main()
