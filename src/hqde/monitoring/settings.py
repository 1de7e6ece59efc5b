"""``[monitoring]``: what is measured while a run trains, and who is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hqde.errors import ConfigError
from hqde.monitoring.alerts import AlertRule, make_rules
from hqde.monitoring.registry import check_exporter


@dataclass(frozen=True)
class Monitoring:
    """``[monitoring]``: samples of the machine, alerts, exporters. Weights depend on none of it.

    Args:
        interval_s: seconds between two samples of the machine; 0 takes none.
        keep: samples kept in memory; the file has all of them.
        alerts: watch the rules below.
        rules: changes to the default alert rules, by name, and further rules.
        webhook: an address that gets each alert as JSON, by POST.
        command: a command that is run for each alert, which it finds as JSON on its standard input.
        exporters: ``tensorboard``, ``mlflow``, ``csv``, ``parquet``, or ``module:Class`` of your own.
        metrics_port: a port to serve Prometheus metrics on.
        metrics_host: the address to serve them at; ``0.0.0.0`` lets other machines in.

    Example:
        >>> Monitoring(rules={"memory": {"above": 80.0, "clear": 70.0}}).alert_rules()["memory"].above
        80.0
        >>> Monitoring(exporters=["tensorbord"])
        Traceback (most recent call last):
        hqde.errors.ConfigError: unknown exporter 'tensorbord'; did you mean 'tensorboard'?
    """

    interval_s: float = 1.0
    keep: int = 3600
    alerts: bool = True
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    webhook: str | None = None
    command: str | None = None
    exporters: list[str] = field(default_factory=list)
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if self.interval_s < 0 or (0 < self.interval_s < 0.01):
            raise ConfigError(
                f"monitoring.interval_s must be 0 (off) or at least 0.01, got {self.interval_s:g}"
            )
        if self.keep < 1:
            raise ConfigError(f"monitoring.keep must be at least 1, got {self.keep}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise ConfigError(
                f"monitoring.metrics_port must lie between 0 (any free) and 65535, got {self.metrics_port}"
            )
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ConfigError(f"monitoring.webhook must start with http:// or https://, got '{self.webhook}'")
        for name in self.exporters:
            check_exporter(name)
        make_rules(self.rules)

    def alert_rules(self) -> dict[str, AlertRule]:
        """The rules to watch; none where alerts are off."""
        return make_rules(self.rules) if self.alerts else {}
