"""Every setting of a run, as strict objects whose defaults are the documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hqde.aggregation import (
    AggregationPolicy,
    FractionalRule,
    HeldOutImprovement,
    LearntShares,
    NormBound,
    Reliability,
    Rule,
    make_rule,
)
from hqde.backends import RaySettings
from hqde.compression import Compression, EntropyCodec, PackedCodec, make_codec
from hqde.data import Augmentation
from hqde.errors import ConfigError
from hqde.monitoring import Monitoring
from hqde.rounds import FaultPolicy, Privacy, Snapshots
from hqde.topology import Topology
from hqde.training import Diversity, Recipe


@dataclass(frozen=True)
class DataSettings:
    """``[data]``: where examples come from and who sees which.

    Args:
        source: ``digits``, ``fashion-mnist:DIR``, ``cifar10:DIR``, a file, a folder, or ``module:function``.
        task: ``classification`` or ``regression``; left out, it is read from the targets.
        target: column to predict in tables; left out, it is guessed from the usual names.
        max_train: use only this many training examples (chosen by ``split_seed``).
        validation_fraction: of the training examples, held out.
        test_fraction: held out where the source has no test split of its own.
        split_seed: seed of both held-out splits.
        partition: ``replicate``, ``split``, ``iid``, ``dirichlet`` or ``bootstrap``.
        alpha: skew of ``dirichlet``; small is skewed.
        augmentation: of images, while training.
    """

    source: str = "digits"
    task: Literal["classification", "regression"] | None = None
    target: str | None = None
    max_train: int | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    partition: str = "replicate"
    alpha: float = 0.5
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True)
class ModelSettings:
    """``[model]``: the architecture.

    Args:
        name: ``auto`` (``cnn`` for images, ``mlp`` for tables), ``mlp``, ``cnn``, ``resnet18``, or
            ``module:Class`` of your own.
        norm: ``batch`` or ``group``, for the built-in models.
        dropout_rate: base rate, spread over the workers by ``diversity.dropout_spread``.
        options: further keyword arguments of the constructor.
    """

    name: str = "auto"
    norm: Literal["batch", "group"] = "batch"
    dropout_rate: float = 0.1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerSettings:
    """``[server]``: from a group's aggregated delta to its new weights.

    Args:
        optimizer: ``fedavg``, ``momentum``, ``nesterov``, ``fedadagrad``, ``fedadam`` or ``fedyogi``.
        learning_rate: left out, the optimizer's own default.
        momentum: of ``momentum`` and ``nesterov``.
        buffers: ``average`` shares BatchNorm statistics inside a group, ``local`` keeps them per worker.
    """

    optimizer: str = "fedavg"
    learning_rate: float | None = None
    momentum: float | None = None
    buffers: Literal["average", "local"] = "average"


@dataclass(frozen=True)
class AggregationSettings:
    """``[aggregation]``: from a group's deltas to one, and whom to believe.

    Args:
        rule: ``mean``, or a robust one: ``geometric_median``, ``coordinate_median``, ``trimmed_mean``,
            ``multi_krum``, … (see the guarantees).
        num_byzantine: f, the workers of each group that may hand in anything: a number, or a fraction of
            those who take part in a round.
        mixing: pre-aggregators before the rule, in order: ``nnm``, ``bucketing``, ``clipping``, ``arc``.
        options: further settings of the rule.
        on_breach: when fewer updates are left than the rule needs: ``raise``, ``skip_round`` or
            ``keep_previous``.
        norm_bound: refuse deltas longer than this many times what is usual; 0 refuses none.
        max_loss_increase: refuse deltas that raise the loss on validation rows by more than this; left out,
            nobody looks. It uses data of the server.
        learn_shares: weigh the deltas of a round so that the loss on validation rows is least, not by their
            samples. It uses data of the server.
        reliability: ``off``, or what to do with what is remembered of each worker: ``record``, ``weigh`` or
            ``exclude``.
    """

    rule: str = "mean"
    num_byzantine: int | float = 0
    mixing: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    on_breach: Literal["raise", "skip_round", "keep_previous"] = "raise"
    norm_bound: float = 0.0
    max_loss_increase: float | None = None
    learn_shares: bool = False
    reliability: Literal["off", "record", "weigh", "exclude"] = "off"

    def build_rule(self) -> Rule | FractionalRule:
        """The rule that is named.

        Raises:
            ConfigError: an unknown name or setting, or a value out of range.
        """
        if isinstance(self.num_byzantine, float):
            return FractionalRule(self.rule, self.num_byzantine, tuple(self.mixing), self.options)
        return make_rule(self.rule, num_byzantine=self.num_byzantine, mixing=self.mixing, **self.options)

    def build_policy(self) -> AggregationPolicy:
        """The policy that is described.

        Raises:
            ConfigError: a value out of range.
        """
        bounded, judged = self.norm_bound != 0, self.max_loss_increase
        return AggregationPolicy(
            on_breach=self.on_breach,
            norm_bound=NormBound(factor=self.norm_bound) if bounded else None,
            held_out=None if judged is None else HeldOutImprovement(max_increase=judged),
            learnt_shares=LearntShares() if self.learn_shares else None,
            reliability=None if self.reliability == "off" else Reliability(),
            use="record" if self.reliability == "off" else self.reliability,
        )


@dataclass(frozen=True)
class CompressionSettings:
    """``[compression]``: how deltas and weights travel between workers and whoever aggregates them.

    Args:
        codec: ``none``, ``packed`` (blocks of packed integers), ``entropy`` (the same error in fewer bytes,
            at more computing time), or ``auto``: none on one machine, else packed, and entropy where
            ``ray.link_gbit`` is below 1.
        bits: average per weight; of ``entropy`` with all overhead, of ``packed`` without the scales.
        final_bits: reached at the end of the run, in a straight line; left out, ``bits`` throughout.
        feedback: what a packet leaves out is made up for in the next round.
        downlink: encode the weights on their way down too.
        warmup_rounds: rounds at the start that send everything as it is.
        smallest: tensors with fewer elements are sent as they are.
        options: further settings of the codec.
    """

    codec: Literal["none", "packed", "entropy", "auto"] = "none"
    bits: float = 4.0
    final_bits: float | None = None
    feedback: bool = True
    downlink: bool = True
    warmup_rounds: int = 0
    smallest: int = 512
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Compression:
        """What is described; ``auto`` must have been resolved.

        Raises:
            ConfigError: a value out of range, or settings that exclude each other.
        """
        codec = None if self.codec == "none" else make_codec(self.codec, bits=self.bits, **self.options)
        assert codec is None or isinstance(codec, PackedCodec | EntropyCodec)
        return Compression(
            codec,
            downlink=self.downlink,
            feedback=self.feedback,
            warmup_rounds=self.warmup_rounds,
            final_bits=self.final_bits,
            smallest=self.smallest,
        )


@dataclass(frozen=True)
class EnsembleSettings:
    """``[ensemble]``: how members become one prediction.

    Args:
        combiner: one of `hqde.ensemble.COMBINERS`; those that learn are fitted on the validation split at the
            end. ``auto`` takes ``mean``, ``stacking`` or ``entanglement``, whichever those rows speak for.
        drop_outliers: leave members out whose loss on validation rows stands out.
        calibrate: fit a temperature on the validation split.
        matrix_scaling: and a matrix scaling after it, where those rows speak for one.
        snapshots: members beside the groups' last weights.
    """

    combiner: str = "auto"
    drop_outliers: bool = False
    calibrate: bool = True
    matrix_scaling: bool = False
    snapshots: Snapshots = Snapshots()


@dataclass(frozen=True)
class RunSettings:
    """``[run]``: size, length, place.

    Args:
        workers: training replicas.
        epochs: passes of each worker over its shard.
        seed: of every random stream but the data splits.
        backend: ``local``, ``vectorised``, ``ray``, or ``auto``: what a few steps show to be quickest.
        balance: how many rows each worker gets of a ``split`` or ``iid`` partition, and who predicts what:
            ``round_robin`` (equal), ``least_loaded`` or ``adaptive`` (by measured speed).
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, …
        lanes: workers side by side in this process; 0 takes as many as there are cores for.
        stacked: workers in a stack of ``vectorised`` at most; 0 takes as many as memory allows.
        threads: torch threads of each worker; 0 follows from the cores. The same bits need the same number.
        early_stopping: epochs without improvement of the ensemble's validation loss; 0 trains to the end.
        evaluate_every: epochs between two looks at the validation split.
        checkpoint_every: epochs between two checkpoints.
    """

    workers: int = 4
    epochs: int = 20
    seed: int = 0
    backend: str = "local"
    balance: str = "round_robin"
    device: str = "auto"
    lanes: int = 0
    stacked: int = 0
    threads: int = 0
    early_stopping: int = 0
    evaluate_every: int = 1
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("epochs", 1), ("evaluate_every", 1), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lanes", "stacked", "threads", "early_stopping"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class GroupConfig:
    """``[group.N]``: what group N does differently.

    Args:
        model: another architecture.
        options: constructor arguments of that architecture; without ``model``, changes to
            ``[model.options]``.
        dropout_rate: another base rate.
        bootstrap: its workers draw their shards with replacement.
        training: any settings of ``[training]``.
    """

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dropout_rate: float | None = None
    bootstrap: bool | None = None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """A whole run.

    Example:
        >>> Config().run.epochs
        20
    """

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: Recipe = Recipe()
    diversity: Diversity = Diversity()
    topology: Topology = Topology()
    aggregation: AggregationSettings = AggregationSettings()
    server: ServerSettings = ServerSettings()
    compression: CompressionSettings = CompressionSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    run: RunSettings = RunSettings()
    faults: FaultPolicy = FaultPolicy()
    privacy: Privacy = Privacy()
    ray: RaySettings = RaySettings()
    monitoring: Monitoring = field(default_factory=Monitoring)
    group: dict[str, GroupConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least, most = self.ray.min_workers, self.run.workers
        if least > most:
            raise ConfigError(f"ray.min_workers={least} is more than run.workers={most}")
        if least and self.run.backend != "ray":
            raise ConfigError(
                f"a run that may have between {least} and {most} workers needs --backend ray; give one number"
            )
