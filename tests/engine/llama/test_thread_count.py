"""The number of threads follows what other programs leave, and trials cost little."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.engine.llama.thread_count import MOST_PAUSE_S, ThreadCount

Cost = Callable[[int], tuple[float, float]]
"""Seconds of a batch with so many threads, and those in which the engine's thread runs."""


def quiet(threads: int) -> tuple[float, float]:
    """Two cores, measured: nothing runs beside."""
    return {1: (0.0120, 0.0119), 2: (0.0085, 0.0084)}[threads]


def one_beside(threads: int) -> tuple[float, float]:
    return {1: (0.0122, 0.0121), 2: (0.0193, 0.0112)}[threads]


def four_beside(threads: int) -> tuple[float, float]:
    """Each thread more gets a share more."""
    return {1: (0.0320, 0.0130), 2: (0.0280, 0.0110)}[threads]


def prompt_beside_one(threads: int) -> tuple[float, float]:
    """It waits for the processor, of which two threads get more."""
    return {1: (0.60, 0.60), 2: (0.45, 0.30)}[threads]


def many_cores(cores: int, beside: int) -> Cost:
    """Threads wait for one that has to wait for its core."""

    def cost(threads: int) -> tuple[float, float]:
        running = min(threads, cores * threads / (threads + beside))
        late = 0.004 if threads + beside > cores else 0.0
        return 0.006 * cores / running + late, 0.006 * cores / threads

    return cost


class Machine:
    """Runs batches one after the other on a clock of its own."""

    def __init__(self, most: int = 2) -> None:
        self.threads = ThreadCount(most)
        self.now = 100.0
        self._noise = random.Random(1)

    def run(self, cost: Cost, seconds: float, *, noise: float = 0.0, tokens: int = 1) -> float:
        """Returns the mean time of a batch."""
        end, batches, began = self.now + seconds, 0, self.now
        while self.now < end:
            threads = self.threads.for_batch(tokens, self.now)
            wall, cpu = cost(threads)
            wall = max(cpu, wall * self._noise.uniform(1 - noise, 1 + noise))
            self.now += wall
            self.threads.took(tokens, threads, self.now, wall_s=wall, cpu_s=cpu)
            batches += 1
        return (self.now - began) / batches


def test_all_threads_compute_on_a_quiet_machine() -> None:
    machine = Machine()
    assert machine.run(quiet, 60) == pytest.approx(quiet(2)[0])


def test_one_thread_computes_beside_a_busy_program() -> None:
    machine = Machine()
    machine.run(quiet, 5)
    machine.run(one_beside, 1)
    assert machine.threads.count(1) == 1
    assert machine.run(one_beside, 60) < 1.03 * one_beside(1)[0]


def test_all_threads_compute_again_when_it_ends() -> None:
    machine = Machine()
    machine.run(one_beside, 60)
    machine.run(quiet, MOST_PAUSE_S + 1)
    assert machine.threads.count(1) == 2
    assert machine.run(quiet, 60) == pytest.approx(quiet(2)[0])


def test_all_threads_stay_where_fewer_get_less() -> None:
    machine = Machine()
    assert machine.run(four_beside, 60) < 1.01 * four_beside(2)[0]
    assert machine.threads.count(1) == 2
    # One thread is right beside one program, and no longer beside four.
    machine.run(one_beside, 10)
    assert machine.threads.count(1) == 1
    machine.run(four_beside, MOST_PAUSE_S + 1)
    assert machine.threads.count(1) == 2


@pytest.mark.parametrize("cost", [one_beside, four_beside])
def test_noise_costs_little(cost: Cost) -> None:
    best = min(cost(threads)[0] for threads in (1, 2))
    assert Machine().run(cost, 120, noise=0.3) < 1.1 * best


@pytest.mark.parametrize("beside", [1, 2, 3])
def test_each_busy_program_takes_a_core(beside: int) -> None:
    machine = Machine(8)
    machine.run(many_cores(8, beside), 60)
    assert machine.threads.count(1) == 8 - beside
    machine.run(many_cores(8, 0), 60)
    assert machine.threads.count(1) == 8


def test_many_programs_on_many_cores_are_found_and_forgotten() -> None:
    machine = Machine(64)
    machine.run(many_cores(64, 20), 60)
    assert machine.run(many_cores(64, 20), 60) < 1.1 * many_cores(64, 20)(44)[0]
    machine.run(many_cores(64, 0), 12)
    assert machine.threads.count(1) == 64


def test_few_tokens_and_many_have_numbers_of_their_own() -> None:
    machine = Machine()
    for _ in range(20):
        machine.run(prompt_beside_one, 0.9, tokens=512)
        machine.run(one_beside, 1.5)
    assert machine.threads.count(512) == 2
    assert machine.threads.count(1) == 1
    # What few rows learn of the machine does not touch prompts, and the other way round.
    assert machine.run(one_beside, 20) < 1.03 * one_beside(1)[0]
    assert machine.threads.count(512) == 2


def test_trials_of_long_batches_cost_little() -> None:
    """With a large model, a single batch takes longer than the pause between two trials."""

    def large_model(threads: int) -> tuple[float, float]:
        return {1: (10.0, 4.0), 2: (7.0, 4.0)}[threads]

    assert Machine().run(large_model, 3600) < 1.1 * large_model(2)[0]


def test_nothing_is_known_of_other_programs_after_a_gap() -> None:
    """They may have ended. The first batch of a request is not slowed by a trial."""
    machine = Machine()
    machine.run(four_beside, 60)
    machine.now += 60
    assert machine.threads.for_batch(1, machine.now) == 2
    assert machine.run(quiet, 60) == pytest.approx(quiet(2)[0])


def test_a_gap_ends_a_trial_of_fewer_threads() -> None:
    machine = Machine()
    machine.run(four_beside, 10)
    while machine.threads.for_batch(1, machine.now) == 2:
        machine.run(four_beside, 0.01)
    machine.now += 60
    assert machine.threads.for_batch(1, machine.now) == 2


def test_a_size_that_is_new_is_not_tried() -> None:
    """There would be no time to compare it with, and a long prompt takes seconds."""
    machine = Machine()
    for tokens in range(1, 600):
        threads = machine.threads.for_batch(tokens, machine.now)
        if tokens <= 32 or tokens.bit_count() == 1:
            assert threads == 2
        machine.now += 1
        machine.threads.took(tokens, threads, machine.now, wall_s=1.0, cpu_s=0.5)


@given(
    st.integers(1, 40),
    st.lists(
        st.tuples(st.integers(1, 600), st.floats(1e-6, 10), st.floats(0, 1), st.floats(0, 20))
    ),
)
def test_whatever_batches_take(most: int, batches: list[tuple[int, float, float, float]]) -> None:
    count, now = ThreadCount(most), 0.0
    for tokens, wall, part, pause in batches:
        now += pause
        usual = count.count(tokens)
        threads = count.for_batch(tokens, now)
        assert 1 <= threads <= most
        assert usual <= 2 * threads <= 4 * usual + 1
        now += wall
        count.took(tokens, threads, now, wall_s=wall, cpu_s=part * wall)
        assert 1 <= count.count(tokens) <= most
