"""What a network costs: parameters, MACs, latency, memory. It needs torch alone and takes any nn.Module.

    count              parameters and MACs, and which operators the MACs leave out
    summary            the same layer by layer, as a table
    latency            median time of a step, with its spread
    compare_latency    that of several networks measured in turns, and their ratios
    peak_memory        bytes of a step at its worst moment
    profile            all of it for several networks side by side

Each returns a dataclass that prints as plain text and has ``as_dict()``; none of them leaves a trace in the network.
"""

from __future__ import annotations

from attendo.profiling.counts import Counts, count
from attendo.profiling.latencies import Latency, LatencyComparison, Ratio, compare_latency, latency
from attendo.profiling.memory import PeakMemory, peak_memory
from attendo.profiling.profiles import Environment, Profile, ProfileRow, profile
from attendo.profiling.summaries import Row, Summary, summary

__all__ = [
    "Counts",
    "Environment",
    "Latency",
    "LatencyComparison",
    "PeakMemory",
    "Profile",
    "ProfileRow",
    "Ratio",
    "Row",
    "Summary",
    "compare_latency",
    "count",
    "latency",
    "peak_memory",
    "profile",
    "summary",
]
