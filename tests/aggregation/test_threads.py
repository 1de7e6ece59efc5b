"""Work spread over threads: results in order, errors raised, the same bits on one thread and on two."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from hqde.aggregation import GeometricMedian, make_rule
from hqde.aggregation.gram import BLOCK
from hqde.aggregation.threads import LEAST_OPERATIONS, slices, spread, spread_runs


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_come_in_the_order_of_the_pieces_from_more_threads_than_one():
    both = threading.Barrier(2, timeout=20)
    workers = set()

    def work(piece):
        if piece < 2:
            both.wait()  # ends only if another thread takes the other piece
        workers.add(threading.get_ident())
        return piece * piece

    assert spread(work, range(20)) == [piece * piece for piece in range(20)]
    assert len(workers) == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("bad", [0, 3, 9])
def test_what_a_piece_raises_is_raised(bad):
    with pytest.raises(ZeroDivisionError):
        spread(lambda piece: 1 // (piece - bad), range(10))
    assert spread(str, range(3)) == ["0", "1", "2"]


@pytest.mark.usefixtures("two_threads")
def test_a_piece_may_spread_its_own_work():
    assert spread(lambda piece: sum(spread(lambda x: x * piece, range(4))), range(6)) == [
        6 * piece for piece in range(6)
    ]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 100])
def test_runs_cover_all_columns_in_order_and_begin_at_blocks(size):
    for operations in (0.0, LEAST_OPERATIONS):
        runs = spread_runs(lambda columns: columns, 0, size, 2, operations=operations)
        assert [c for run in runs for c in range(run.start, run.stop)] == list(range(size))
        assert all(run.start % 2 == 0 for run in runs)
        assert len(runs) == 1 if operations == 0.0 else size < 3 or len(runs) > 1
    assert slices(0, 0, 3) == []


@pytest.mark.parametrize("rule", [GeometricMedian(), make_rule("multi_krum", num_byzantine=8)])
def test_one_thread_and_two_give_the_same_bits(rule, two_threads):
    rows = torch.randn(40, 5 * BLOCK + 77, generator=torch.Generator().manual_seed(0))
    shares = torch.full((40,), 1 / 40, dtype=torch.float64)
    on_two = rule(rows, shares).value
    torch.set_num_threads(1)
    assert torch.equal(rule(rows, shares).value, on_two)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    spread(str, range(5))
    child = os.fork()
    if child == 0:
        spread(str, range(5))
        os._exit(7)
    until = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
    assert os.waitstatus_to_exitcode(ended[1]) == 7
    assert ended[0] == child
