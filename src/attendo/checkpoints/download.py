"""Files from the network: by URL with resume and checksum, or from the Hugging Face Hub through its own client."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attendo._errors import CheckpointError
from attendo.models.hub import hub_or_cache

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if the server says

CHUNK = 2**20  # bytes
HUB = "hf-hub:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def cache_folder() -> Path:
    """Where downloads go: ``$ATTENDO_CACHE``, else ``attendo`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if folder := os.environ.get("ATTENDO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attendo"


def download(url: str, folder: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Download a file once; a download that was broken off goes on where it stopped.

    A checksum in the URL is compared: ``#sha256=...`` at its end, or the first digits of a SHA-256 in the file's name
    after a hyphen, as PyTorch's own files carry them (``resnet50-0676ba61.pth``).

    Args:
        url: ``http://`` or ``https://``.
        folder: where it goes; None is the cache.
        progress: called with the bytes so far and, if known, in all.

    Returns:
        The file.

    Raises:
        CheckpointError: the network is not there, the server says no, or the checksum differs.
    """
    address, _, fragment = url.partition("#")
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name or "weights"
    key = hashlib.sha256(address.encode()).hexdigest()[:12]
    target = Path(folder or cache_folder()) / f"{key}-{name}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _fetch(address, part, progress)
    except (urllib.error.URLError, OSError) as error:
        done = part.stat().st_size if part.exists() else 0
        raise CheckpointError(
            f"{url}: the download failed ({error}) after {done:,} bytes, which are kept. Call again to go on, or "
            f"download the file by other means and give its path."
        ) from None
    found = _sha256(part)
    wanted = _checksum(name, fragment)
    if wanted and not found.startswith(wanted):
        part.unlink()
        raise CheckpointError(
            f"{url}: the file's SHA-256 begins with {found[:16]} and should begin with {wanted[:16]}; it is damaged or "
            f"another file, and was deleted. Download it again."
        )
    part.replace(target)
    return target


def _fetch(address: str, part: Path, progress: Progress | None) -> None:
    """Append the rest of a file to what is there of it."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "attendo"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is left to send
            return
        raise
    with answer:
        if answer.status != 206:  # the server sends all of it, from the start
            done = 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection ended at {done:,} of {total:,} bytes")


def _checksum(name: str, fragment: str) -> str:
    if match := re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", fragment):
        return match[1].lower()
    match = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", name)
    return match[1] if match else ""


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()


def from_hub(name: str, revision: str | None = None) -> Path:
    """Fetch a repository's weights from the Hugging Face Hub, or find them in its cache.

    Args:
        name: ``owner/repository``, or ``owner/repository/file`` for a file of another name.
        revision: branch, tag or commit.

    Raises:
        CheckpointError: no such repository or file, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    owner, repository, *rest = name.split("/")
    with hub_or_cache() as why:
        for filename in ["/".join(rest)] if rest else HUB_FILES:
            try:
                return Path(hf_hub_download(f"{owner}/{repository}", filename, revision=revision))
            except LocalEntryNotFoundError as error:
                reason: Any = why or error
                break
            except EntryNotFoundError as error:
                reason = error
            except (HfHubHTTPError, OSError, ValueError) as error:
                reason = error
                break
    raise CheckpointError(
        f"{HUB}{name}: no weights came from the Hub ({str(reason).splitlines()[0]}). Check the name and the network, "
        f"or download the file by other means and give its path."
    )
