"""``attendo summary``, ``attendo profile``, ``attendo list``: what there is and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich.console import Console

from attendo import list_layers
from attendo.checkpoints import load
from attendo.models import BASES, create_model, list_models, parse_attention
from attendo.models.spec import NONE
from attendo.profiling import profile as measure
from attendo.profiling import summary as summarise
from attendo.profiling.latencies import busy

Many = Parameter(consume_multiple=True, negative="")


def summary(
    model: str,
    *,
    attention: str = NONE,
    stem: str | None = None,
    image_size: int = 224,
    num_classes: int = 1000,
    depth: int | None = None,
) -> int:
    """Print the layers of a network with their output shapes, parameters and MACs.

    Args:
        model: A network of attendo or timm: cbam_resnet50, resnet50 ..., see attendo list; or a file of weights.
        attention: A mechanism, with settings after a colon, for a plain ResNet.
        stem: imagenet, stride2 or cifar; by default the network's own.
        image_size: Side in pixels.
        num_classes: Outputs of the network.
        depth: Levels of nesting to show; by default all.
    """
    network = load(model) if Path(model).is_file() else _build(model, attention, stem, num_classes)
    found = summarise(network, (3, image_size, image_size), depth=depth)
    Console(soft_wrap=True).print(str(found), markup=False, highlight=False)
    return 0


def profile(
    *models: str,
    attention: Annotated[tuple[str, ...], Many] = (NONE,),
    stem: str | None = None,
    image_size: int = 224,
    num_classes: int = 1000,
    batch_size: int = 1,
    training: Annotated[bool, Parameter(negative="")] = False,
    threads: int | None = None,
    seconds: float = 1.0,
    csv: Path | None = None,
    engines: Annotated[tuple[str, ...], Many] = (),
) -> int:
    """Compare parameters, MACs, latency and peak memory of networks, measured in turns in one run.

    Args:
        models: Networks of attendo or timm; ratios are to the first.
        attention: Mechanisms; each plain ResNet is measured with each of them.
        stem: imagenet, stride2 or cifar; by default the network's own.
        image_size: Side in pixels.
        num_classes: Outputs of the networks.
        batch_size: Images per step.
        training: Measure forward and backward instead of forward.
        threads: Threads of torch.
        seconds: Seconds of latency samples per network, at least.
        csv: File for the numbers.
        engines: Measure latency in these engines instead: eager, compile, onnxruntime, openvino, openvino-bf16.
    """
    networks = {}
    for model in models:
        for word in attention if model in BASES else (NONE,):
            name = model if parse_attention(word)[0] == NONE else f"{model} {word}"
            networks[name] = _build(model, word, stem if model in BASES else None, num_classes)
    if engines:
        from attendo.exports import compare_engines

        size = (3, image_size, image_size)
        table = compare_engines(
            networks, engines, input_size=size, batch_sizes=(batch_size,), threads=threads, min_seconds=seconds
        )
        Console(soft_wrap=True).print(str(table), markup=False, highlight=False)
        return 0
    found = measure(networks, (3, image_size, image_size), batch_size, training, threads, min_seconds=seconds)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(str(found))
    if why := busy([row.name for row in found.rows if not row.latency.steady]):
        console.print(why)
    if csv is not None:
        csv.write_text(found.to_csv(), encoding="utf-8")
    return 0


def list_names() -> int:
    """List the mechanisms and networks by name."""
    console = Console(soft_wrap=True)
    console.print("mechanisms:", ", ".join(list_layers()), highlight=False)
    console.print("plain networks, which take any mechanism:", ", ".join(BASES), highlight=False)
    console.print("networks with attention, also in timm:", ", ".join(list_models()), highlight=False)
    return 0


def _build(model: str, attention: str, stem: str | None, num_classes: int) -> torch.nn.Module:
    arguments: dict[str, Any] = {} if stem is None else {"stem": stem}
    return create_model(model, attention=attention, num_classes=num_classes, **arguments)
