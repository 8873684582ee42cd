"""Taking the time of networks in turns: one sample each per round, and another one first in every round."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from attendo._errors import InvalidArgument
from attendo.profiling._checks import Size, check_models, check_positive, check_size
from attendo.profiling._run import borrowed, explained, place, step

SAMPLE_SECONDS = 1e-3  # shorter ones would measure the clock and the synchronisation with the device


@dataclass(frozen=True)
class Plan:
    """What is to be measured, checked."""

    models: dict[str, nn.Module]
    input_size: tuple[int, ...]
    batch_size: int
    training: bool
    threads: int
    repeats: int
    min_seconds: float
    warm_up: int


def plan(
    asked_by: str,
    models: object,
    input_size: Size,
    batch_size: int,
    training: bool,
    threads: int | None,
    repeats: int,
    min_seconds: float,
    warm_up: int,
) -> Plan:
    """Check everything before anything runs.

    Raises:
        InvalidArgument: no models, one that cannot run, or a number that is not positive.
    """
    networks, size = check_models(models, asked_by), check_size(input_size, asked_by)
    for name, network in networks.items():
        if place(network).device.type == "meta":
            raise InvalidArgument(
                f"{asked_by}: {name} is on device 'meta', where tensors have a shape but no values; only what computes "
                f"takes time. Move it with model.to_empty(device='cpu')."
            )
    for name, value in (("batch_size", batch_size), ("repeats", repeats), ("warm_up", warm_up)):
        check_positive(value, name, asked_by)
    if not isinstance(min_seconds, int | float) or not 0 <= min_seconds < math.inf:
        raise InvalidArgument(f"{asked_by}: min_seconds={min_seconds!r}; it must be 0 or more. Pass 1.0.")
    threads = torch.get_num_threads() if threads is None else check_positive(threads, "threads", asked_by)
    return Plan(networks, size, batch_size, training, threads, repeats, min_seconds, warm_up)


class Run:
    """A network with its batch, warmed up, and the samples taken of it.

    Attributes:
        calls: steps in one sample, as many as last a millisecond.
        warm_up: steps that ran before the first sample.
        samples_ms: mean milliseconds per step of each sample.
    """

    def __init__(self, model: nn.Module, planned: Plan) -> None:
        self.model, self.training, self.place = model, planned.training, place(model)
        self.x = self.place.batch(planned.input_size, planned.batch_size)
        explained(model, planned.input_size, planned.batch_size, self.step)
        for _ in range(planned.warm_up - 1):
            self.step()
        self.calls, self.warm_up = 1, planned.warm_up
        while (seconds := self.seconds()) < SAMPLE_SECONDS:
            self.warm_up += self.calls
            self.calls = max(self.calls + 1, math.ceil(self.calls * min(10, SAMPLE_SECONDS / seconds)))
        self.warm_up += self.calls
        self.samples_ms: list[float] = []

    def step(self) -> None:
        """Run one step, and let go of what it returns."""
        step(self.model, self.x, self.training)

    def seconds(self) -> float:
        """Return the seconds of ``calls`` steps, until the device has finished them."""
        self._finish()
        start = time.perf_counter()
        for _ in range(self.calls):
            self.step()
        self._finish()
        return time.perf_counter() - start

    def sample(self) -> float:
        """Take a sample; return the seconds it took."""
        seconds = self.seconds()
        self.samples_ms.append(seconds / self.calls * 1e3)
        return seconds

    def _finish(self) -> None:
        if self.place.device.type != "cpu":
            torch.accelerator.synchronize(self.place.device)


def take_turns(planned: Plan) -> dict[str, Run]:
    """Sample all networks in rounds until each has its repeats and its seconds; they are left as they were.

    Raises:
        InvalidArgument: a size that a network cannot take, or training of one without trainable parameters.
    """
    with ExitStack() as stack:
        stack.enter_context(_threads(planned.threads))
        stack.enter_context(torch.set_grad_enabled(planned.training))
        for network in planned.models.values():
            stack.enter_context(borrowed(network, planned.training))
        runs = {name: Run(network, planned) for name, network in planned.models.items()}
        stack.enter_context(_no_garbage_collection())
        order, spent, rounds = list(runs), dict.fromkeys(runs, 0.0), 0
        while rounds < planned.repeats or min(spent.values()) < planned.min_seconds:
            for name in order:
                spent[name] += runs[name].sample()
            order.append(order.pop(0))
            rounds += 1
    return runs


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
