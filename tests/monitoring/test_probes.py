"""Figures against their source, and what happens when a source is not there."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hqde.monitoring import GpuProbe, Probes, SystemMetrics, container_memory

SEED_FIELDS = (
    "timestamp", "cpu_percent", "memory_percent", "memory_used_gb", "disk_io_read_mb", "disk_io_write_mb",
    "network_sent_mb", "network_recv_mb", "gpu_memory_used_gb", "gpu_utilization", "load_average",
)  # fmt: skip


def test_the_fields_of_the_seed_come_first():
    assert tuple(field.name for field in fields(SystemMetrics))[: len(SEED_FIELDS)] == SEED_FIELDS


def test_a_first_sample_has_no_rates_and_a_second_one_has():
    probes = Probes()
    first = probes.sample()
    assert first.cpu_percent is None
    assert first.disk_write_bytes_per_s is None
    assert first.network_sent_mb == 0.0
    time.sleep(0.05)
    second = probes.sample()
    assert 0.0 <= second.cpu_percent <= 100.0
    assert second.network_sent_bytes_per_s >= 0.0
    assert second.monotonic_s > first.monotonic_s
    assert second.timestamp > first.timestamp


def proc_stat():
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    times = [int(word) for word in words[:8]]  # a guest's time is in user time already
    return sum(times), times[3] + times[4]


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="needs /proc")
def test_cpu_agrees_with_proc_stat():
    probes = Probes()
    probes.sample()
    total, idle = proc_stat()
    began, used = time.monotonic(), time.process_time()
    end = began + 0.6
    while time.monotonic() < end:
        pass
    sample = probes.sample()
    total_after, idle_after = proc_stat()
    expected = 100.0 * (1.0 - (idle_after - idle) / (total_after - total))
    assert sample.cpu_percent == pytest.approx(expected, rel=0.1, abs=2.0)
    mine = 100.0 * (time.process_time() - used) / (time.monotonic() - began)  # others may want the core too
    assert sample.process_cpu_percent == pytest.approx(mine, rel=0.2, abs=3.0)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_memory_agrees_with_proc():
    sample = Probes().sample()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert sample.process_rss_bytes == pytest.approx(1024 * int(status["VmRSS"].split()[0]), rel=0.1)
    info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {name: int(info[name].split()[0]) for name in ("MemTotal", "MemAvailable")}
    used = (kib["MemTotal"] - kib["MemAvailable"]) / 2**20
    assert sample.memory_used_gb == pytest.approx(used, rel=0.1)


def test_a_known_write_shows_on_the_disk(tmp_path):
    size = 24 * 2**20
    probes = Probes(disk=tmp_path)
    probes.sample()
    own = psutil.Process().io_counters().write_bytes
    with open(tmp_path / "block", "wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
    sample = probes.sample()
    if psutil.Process().io_counters().write_bytes - own < size:
        pytest.skip("this directory is in memory")
    # Others may write as well, and the kernel's figure for a disk has everybody's.
    assert sample.disk_io_write_mb >= 0.9 * size / 2**20
    assert sample.disk_write_bytes_per_s > 0
    assert sample.disk_free_bytes < sample.disk_total_bytes


def test_a_known_transfer_shows_on_the_network():
    size = 16 * 2**20
    with socket.create_server(("127.0.0.1", 0)) as server:
        probes = Probes()
        probes.sample()

        def send():
            with socket.create_connection(server.getsockname()) as out:
                out.sendall(bytes(size))

        sender = threading.Thread(target=send)
        sender.start()
        with server.accept()[0] as connection:
            received = 0
            while chunk := connection.recv(2**20):
                received += len(chunk)
        sender.join()
        sample = probes.sample()
    assert received == size
    assert sample.network_sent_mb == pytest.approx(size / 2**20, rel=0.1)
    assert sample.network_recv_mb == pytest.approx(size / 2**20, rel=0.1)


def test_what_cannot_be_read_is_none_with_one_warning(monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(psutil, "disk_io_counters", refuse)
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    probes = Probes()
    with caplog.at_level(logging.WARNING, "hqde"):
        for _ in range(3):
            sample = probes.sample()
    assert sample.disk_io_read_mb is None
    assert sample.disk_read_bytes_per_s is None
    assert sample.network_sent_mb is None
    assert sample.memory_used_gb is None
    assert sample.load_average is not None
    assert len(caplog.records) == 3  # one for each source, not one for each sample


def test_processes_that_this_one_started_are_watched(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        probes = Probes(children=True)
        assert {process.pid for process in probes.sample().processes} == {os.getpid(), child.pid}
    finally:
        child.communicate(b"\n")
    assert {process.pid for process in probes.sample().processes} == {os.getpid()}


def test_the_processes_of_this_ones_parent_are_seen_when_asked_for():
    looks = (
        "from hqde.monitoring import Probes; "
        "print(*(process.pid for process in Probes(siblings=True).sample().processes))"
    )
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        looking = subprocess.Popen([sys.executable, "-c", looks], stdout=subprocess.PIPE, text=True)
        found = [int(pid) for pid in looking.communicate()[0].split()]
    finally:
        other.communicate(b"\n")
    assert len(found) == len(set(found))
    assert {looking.pid, other.pid} <= set(found)
    assert found[0] == looking.pid
    assert os.getpid() not in found


def write_tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2 = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/memory.max": "1000\n",
    "sys/fs/cgroup/a/memory.current": "900\n",
    "sys/fs/cgroup/a/memory.stat": "anon 300\ninactive_file 400\n",
    "sys/fs/cgroup/a/b/memory.max": "max\n",
    "sys/fs/cgroup/a/b/memory.current": "700\n",
}
V1 = {
    "proc/self/cgroup": "5:devices:/x\n4:memory:/docker/1\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
    "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "2000\n",
    "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes": "1500\n",
    "sys/fs/cgroup/memory/docker/1/memory.stat": "total_inactive_file 100\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (V2, (1000, 500)),
        (V1, (2000, 1400)),
        (V2 | {"sys/fs/cgroup/a/memory.max": "max"}, None),
        # A container sees its own cgroup at the top, under a path that is the host's.
        (
            {
                "proc/self/cgroup": "0::/../x",
                "sys/fs/cgroup/memory.max": "10",
                "sys/fs/cgroup/memory.current": "4",
            },
            (10, 4),
        ),
        ({"proc/self/cgroup": "4:memory:/docker/1\n"}, None),
        ({}, None),
    ],
    ids=["version 2", "version 1", "unlimited", "inside", "hidden", "no cgroups"],
)  # fmt: skip
def test_a_containers_limit(tmp_path, files, expected):
    write_tree(tmp_path, files)
    assert container_memory(tmp_path) == expected


class Nvml:
    """Two GPUs; the second one keeps its utilisation to itself."""

    class NVMLError(Exception):
        pass

    shut = 0

    def nvmlInit(self):
        pass

    def nvmlShutdown(self):
        self.shut += 1

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, handle):
        return b"H200"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=(handle + 1) * 2**30, total=2**34)

    def nvmlDeviceGetUtilizationRates(self, handle):
        if handle:
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=40)


def test_gpus_are_read_one_by_one(caplog):
    library = Nvml()
    probes = Probes(gpus=GpuProbe(library))
    probes.sample()
    sample = probes.sample()
    assert [gpu.utilization_percent for gpu in sample.gpus] == [40.0, None]
    assert sample.gpu_memory_used_gb == 3.0
    assert sample.gpu_utilization == 40.0
    assert len(caplog.records) == 1
    probes.close()
    probes.close()
    assert library.shut == 1


def test_a_machine_without_gpus_says_nothing_about_them(caplog):
    sample = Probes().sample()
    if sample.gpus:
        pytest.skip("this machine has one")
    assert sample.gpu_memory_used_gb is None
    assert sample.gpu_utilization is None
    assert caplog.records == []


@pytest.mark.gpu
def test_a_real_gpus_memory_is_that_of_torch():
    import torch

    pytest.importorskip("pynvml")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    block = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    sample = Probes().sample()
    free, total = torch.cuda.mem_get_info(0)
    assert sample.gpus[0].memory_total_bytes == pytest.approx(total, rel=0.1)
    assert sample.gpus[0].memory_used_bytes == pytest.approx(total - free, rel=0.1, abs=2**30)
    assert block.is_cuda
