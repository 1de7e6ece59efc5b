"""Flower's simulation as a contender of `peers.py`: a client for each member, and no averaging between them.

The server sends every client one order with a seed; the client trains its model for all epochs, as the plain
loop does but with one torch thread, and sends the weights back. Flower runs as many clients at a time as
there are cores, each in an actor of Ray. Ray's start and end, the actors' imports and the way of the weights
count as training, since a user waits for them. The members then predict in the calling process, like the
plain loop's.

`run_simulation` is the short way in: Flower 1.41 asks for the command `flwr run` instead, which packs and
installs an app first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import ray  # noqa: F401  Flower's extra `simulation` brings it; without, Flower starts and then ends
from torch import Tensor

from peer_runs import (
    Task,
    measured,
    own_usage,
    predictor_of_states,
    seeds_of,
    state_of_member,
    with_usage,
)

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # looked at when it is imported

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation


def client_app() -> ClientApp:
    """Trains the member that it is told to."""
    app = ClientApp()

    @app.train()
    def train(message: Message, _: Context) -> Message:
        order = message.content["order"]
        weights = ArrayRecord(state_of_member(order["path"], order["seed"]))
        content = RecordDict({"weights": weights, "usage": MetricRecord(own_usage())})
        return Message(content, reply_to=message)

    return app


def server_app(orders: list[ConfigRecord], replies: list[Message]) -> ServerApp:
    """Sends each client an order, and fills `replies` in the order of `orders`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Context) -> None:
        while len(clients := list(grid.get_node_ids())) < len(orders):
            time.sleep(0.01)  # they register while this starts
        messages = [
            Message(RecordDict({"order": order}), client, "train")
            for order, client in zip(orders, clients, strict=True)
        ]
        found = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
        replies.extend(found[client] for client in clients)

    return app


def run(task: Task, seed: int) -> dict[str, float]:
    """Members on Flower's simulation.

    Raises:
        RuntimeError: a client failed; with what it said.
    """
    replies: list[Message] = []
    orders = [ConfigRecord({"path": task["path"], "seed": each}) for each in seeds_of(task, seed)]
    cores = len(os.sched_getaffinity(0))
    settings = {
        "init_args": {"num_cpus": cores, "logging_level": "ERROR", "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }

    def train() -> Callable[[], Tensor]:
        run_simulation(server_app(orders, replies), client_app(), len(orders), backend_config=settings)
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a client of Flower failed: {reply.error.reason}")
        states = [reply.content["weights"].to_torch_state_dict() for reply in replies]
        return predictor_of_states(task, states)

    return with_usage(measured(task, train), [dict(reply.content["usage"]) for reply in replies])
