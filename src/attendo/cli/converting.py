"""``attendo insert``, ``attendo convert``, ``attendo export``: networks and their files from one form into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from attendo.checkpoints import convert_file, load, load_weights, read_metadata, save
from attendo.cli.comparing import Many
from attendo.insertion import insert as put
from attendo.insertion import sites
from attendo.models import create_model, parse_attention


def insert(
    model: str,
    attention: str,
    *,
    where: Annotated[tuple[str, ...], Many] = ("auto",),
    weights: Path | None = None,
    pretrained: Annotated[bool, Parameter(negative="")] = False,
    start: str = "identity",
    image_size: int = 224,
    out: Path | None = None,
) -> int:
    """Show where attention would go in a network and what it costs; with --out, insert it and save the network.

    Args:
        model: A network of attendo or timm.
        attention: A mechanism, with settings after a colon: cbam, se:reduction=8.
        where: auto, stages, last, or patterns of module paths such as 'layer4.*.bn3'.
        weights: The network's checkpoint, official or saved by attendo.
        pretrained: Start from timm's weights.
        start: identity (changes nothing until it is trained) or paper.
        image_size: Side in pixels of the image that the places are found with.
        out: File for the network with its attention; attendo.load reads it.
    """
    network = create_model(model, pretrained=pretrained) if weights is None else load_weights(model, str(weights))
    name, settings = parse_attention(attention)
    places: Any = where[0] if len(where) == 1 else list(where)
    size = (3, image_size, image_size)
    found = sites(network, places, size, attention=name, start=start, **settings)  # type: ignore[arg-type]
    console = Console(soft_wrap=True)
    console.print(str(found), markup=False, highlight=False)
    if out is not None:
        put(network, name, places, start=start, input_size=size, **settings)  # type: ignore[arg-type]
        console.print(f"saved: {escape(str(save(network, out)))}")
    return 0


def convert(source: str, target: Path, *, model: str | None = None) -> int:
    """Turn a published checkpoint into a file that describes itself.

    Args:
        source: A checkpoint as official code, timm or torchvision publish it: a file, an https address, or
            hf-hub:OWNER/NAME. Nothing in it is executed.
        target: The file to write, .safetensors.
        model: The network it is for; by default the checkpoint says.
    """
    Console(soft_wrap=True).print(str(convert_file(source, target, model)), markup=False, highlight=False)
    return 0


def export(model: str, *, to: str = "onnx", out: Path | None = None, image_size: int | None = None) -> int:
    """Write a network for another engine, after it has given the same numbers there.

    Args:
        model: A file written by attendo, or the name of a network.
        to: onnx, torch (a torch.export program) or openvino.
        out: The file to write; by default the model's name with the ending of the form, here.
        image_size: Side in pixels; by default what the file says, else 224.
    """
    from attendo.exports.exporting import SUFFIXES
    from attendo.exports.exporting import export as write

    path = Path(model)
    network = load(path) if path.is_file() else create_model(model)
    if image_size is None:
        image_size = int(read_metadata(path).transform.get("image_size", 224)) if path.is_file() else 224
    target = out or Path(path.name).with_suffix(SUFFIXES.get(to, ""))
    written = write(network, target, to, input_size=(3, image_size, image_size))  # type: ignore[arg-type]
    Console(soft_wrap=True).print(str(written), markup=False, highlight=False)
    return 0
