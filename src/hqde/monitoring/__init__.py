"""What a machine does while a run trains: probes, samples, alerts, exporters."""

from hqde.monitoring.alerts import (
    DEFAULT_RULES,
    SIGNALS,
    Alert,
    AlertRule,
    AlertState,
    Signal,
    Watch,
    judge,
    make_rules,
)
from hqde.monitoring.callback import Callback, Callbacks
from hqde.monitoring.containers import container_memory
from hqde.monitoring.gpus import GpuProbe
from hqde.monitoring.monitor import PerformanceMonitor
from hqde.monitoring.notify import Notifier
from hqde.monitoring.probes import Probes, peak_rss_bytes
from hqde.monitoring.prometheus import PrometheusExporter
from hqde.monitoring.registry import EXPORTERS, make_exporter
from hqde.monitoring.sampler import Sampler
from hqde.monitoring.scalars import resource_scalars, round_scalars
from hqde.monitoring.settings import Monitoring
from hqde.monitoring.signals import RoundSignals, sample_signals
from hqde.monitoring.system_metrics import GpuMetrics, ProcessMetrics, SystemMetrics
from hqde.monitoring.tables import export_tables

__all__ = [
    "DEFAULT_RULES",
    "EXPORTERS",
    "SIGNALS",
    "Alert",
    "AlertRule",
    "AlertState",
    "Callback",
    "Callbacks",
    "GpuMetrics",
    "GpuProbe",
    "Monitoring",
    "Notifier",
    "PerformanceMonitor",
    "Probes",
    "ProcessMetrics",
    "PrometheusExporter",
    "RoundSignals",
    "Sampler",
    "Signal",
    "SystemMetrics",
    "Watch",
    "container_memory",
    "export_tables",
    "judge",
    "make_exporter",
    "make_rules",
    "peak_rss_bytes",
    "resource_scalars",
    "round_scalars",
    "sample_signals",
]
