"""Every error that attendo raises on purpose.

    AttendoError
    ├── UnknownName         (KeyError)      a name that no registry knows
    ├── UnknownArgument     (TypeError)     an argument by a name that what was asked does not take
    ├── InvalidArgument     (ValueError)    an argument that cannot work, or two that contradict each other
    ├── MissingDependency   (ImportError)   an optional package is needed; the message is the pip line
    ├── DataError           (ValueError)    a data set that cannot be read or makes no sense
    ├── CheckpointError     (ValueError)    a weight file that is damaged, hostile or for another network
    ├── TrainingError       (RuntimeError)  a training run that cannot go on
    └── ResultsError        (RuntimeError)  a results directory that holds something else than was asked for

The second parent is the built-in error that a caller who does not know attendo would catch.
A message says what was asked, what came, the rule, and the way out.
"""

from __future__ import annotations

import json
from importlib import metadata
from urllib.parse import urlsplit
from urllib.request import url2pathname


class AttendoError(Exception):
    """The root of all errors raised on purpose."""


class UnknownName(AttendoError, KeyError):
    """A name that the registry asked does not know."""

    def __str__(self) -> str:  # KeyError would show the repr, with quotes and escaped line breaks
        return str(self.args[0]) if self.args else ""


class UnknownArgument(AttendoError, TypeError):
    """An argument by a name that what was asked does not take."""


class InvalidArgument(AttendoError, ValueError):
    """An argument that cannot work, or two that contradict each other."""


class MissingDependency(AttendoError, ImportError):
    """An optional package is needed for what was asked."""


class DataError(AttendoError, ValueError):
    """A data set that cannot be read or makes no sense."""


class CheckpointError(AttendoError, ValueError):
    """A weight file that is damaged, hostile or made for another network."""


class TrainingError(AttendoError, RuntimeError):
    """A training run that cannot go on."""


class ResultsError(AttendoError, RuntimeError):
    """A results directory that holds something else than was asked for."""


def pip_line(extra: str) -> str:
    """Return the line that brings an extra, from where attendo itself came: folder, repository, archive or PyPI."""
    try:
        origin = json.loads(metadata.distribution("attendo").read_text("direct_url.json") or "{}")  # PEP 610
    except metadata.PackageNotFoundError:  # on the path without being installed
        origin = {}
    url = origin.get("url")
    if url is None:
        return f"pip install 'attendo[{extra}]'"
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}'{url2pathname(urlsplit(url).path)}[{extra}]'"
    repository = f"{origin['vcs_info']['vcs']}+" if "vcs_info" in origin else ""
    return f"pip install 'attendo[{extra}] @ {repository}{url}'"
