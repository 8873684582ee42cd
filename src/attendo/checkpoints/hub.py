"""Networks on the Hugging Face Hub: one self-describing file and a card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from attendo._errors import CheckpointError
from attendo.checkpoints.download import HUB, from_hub
from attendo.checkpoints.files import load, read_metadata, save

FILE = "model.safetensors"
CARD = """---
library_name: attendo
tags:
- attendo
- image-classification
license: {license}
---

# {name}

`{recipe}`, {parameters:,} parameters, {classes} classes.

```python
import attendo

model = attendo.from_pretrained("{repository}")
```

The file describes itself: architecture, attention, classes and the transform of images are in its metadata
(`attendo.checkpoints.read_metadata`).
"""


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    classes: Sequence[str] = (),
    transform: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    license: str = "other",
    private: bool = False,
    message: str = "Upload with attendo",
) -> str:
    """Upload a network as a file that describes itself, with a card; the repository is made if need be.

    Args:
        model: the network; see ``save``.
        repository: ``owner/name``.
        classes: see ``save``.
        transform: see ``save``.
        extra: see ``save``.
        license: of the weights, in the Hub's words.
        private: whether a repository that is made now is private.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        InvalidArgument: see ``save``; nothing was uploaded.
        CheckpointError: the Hub refused or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder) / FILE, classes=classes, transform=transform, extra=extra)
        metadata = read_metadata(path)
        card = CARD.format(
            license=license,
            name=repository.rpartition("/")[2],
            recipe=metadata.recipe,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            classes=len(classes) or metadata.arguments.get("num_classes", "its"),
            repository=repository,
        )
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{HUB}{repository}: not uploaded ({str(error).splitlines()[0]}). Check the name, the network and your "
                f"login (hf auth login)."
            ) from None
    return str(getattr(done, "commit_url", done))


def from_pretrained(name: str, revision: str | None = None) -> nn.Module:
    """Rebuild a network that ``push_to_hub`` uploaded, in eval mode.

    Args:
        name: ``owner/repository``, or a path on this machine.
        revision: branch, tag or commit.

    Raises:
        CheckpointError: it is not there, cannot be reached, or does not describe itself.
    """
    local = Path(name)
    if local.is_dir():
        local = local / FILE
    return load(local if local.is_file() else from_hub(name, revision))
