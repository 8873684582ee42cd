"""A published checkpoint written again as a file that describes itself: what ``attendo convert`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attendo._errors import CheckpointError
from attendo.checkpoints.conversion import convert
from attendo.checkpoints.download import Progress
from attendo.checkpoints.files import read_metadata, save
from attendo.checkpoints.loading import describes_itself, load_weights
from attendo.checkpoints.reading import locate, read_state


@dataclass(frozen=True)
class Converted:
    """A checkpoint that was written again.

    Attributes:
        path: the file.
        source: who publishes under the names it had.
        recipe: the network that it holds, as one line.
        parameters: of the network.
        renamed: their name -> ours, for every tensor that was kept.
        dropped: their names of entries that were left out.
        notes: what else to know.
    """

    path: Path
    source: str
    recipe: str
    parameters: int
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"found    {self.recipe}, {self.parameters:,} parameters",
            f"names    of {self.source}",
            f"tensors  {len(self.renamed)} kept, {len(self.dropped)} dropped {', '.join(self.dropped)}".rstrip(),
            *(f"note     {note}" for note in self.notes),
            f"written  {self.path}",
        ]
        return "\n".join(lines)


def convert_file(
    source: str | Path,
    path: str | Path,
    name: str | None = None,
    *,
    classes: Sequence[str] = (),
    transform: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write a published checkpoint as a file that describes itself.

    Args:
        source: a path, an http(s) URL, or ``hf-hub:owner/repository``.
        path: the file to write.
        name: the network it must be; None takes it for what it is.
        classes: see ``save``.
        transform: see ``save``.
        progress: see ``load_weights``.

    Raises:
        FileNotFoundError: no such file.
        UnknownName: no such network.
        CheckpointError: see ``load_weights``.
        InvalidArgument: see ``save``.
    """
    local = locate(source, progress)
    model = load_weights(name, local)
    origin = "attendo: a file that describes itself"
    renamed: dict[str, str] = {}
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if not describes_itself(local):
        state = read_state(local)
        try:
            found = convert(state)
            origin, renamed, dropped, notes = found.source, found.renamed, found.dropped, found.notes
        except CheckpointError:  # a network of timm's or torchvision's, loaded under its own names
            origin, renamed = f"{name} itself", {key: key for key in state}
    extra = {"converted_from": Path(str(source)).name, "names_of": origin}
    saved = save(model, path, classes=classes, transform=transform, extra=extra)
    return Converted(
        path=saved,
        source=origin,
        recipe=str(read_metadata(saved).recipe),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        renamed=renamed,
        dropped=dropped,
        notes=notes,
    )
