"""What attention a network gets, as a word that fits a command line: ``"se"``, ``"se:reduction=8"``, ``"none"``.

Settings follow a colon as they would stand in a call: ``"psa:groups=(1,2,4,4),reduction=4"``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from attendo._errors import InvalidArgument
from attendo.layers._base import LAYERS

NONE = "none"


def parse_attention(spec: str | None) -> tuple[str, dict[str, Any]]:
    """Split an attention word into its name and its settings; None means ``"none"``.

    Raises:
        UnknownName: no such mechanism.
        InvalidArgument: the settings cannot be read, or one is not a plain value.

    >>> parse_attention("eca:kernel_size=5")
    ('eca', {'kernel_size': 5})
    """
    name, _, text = (spec or NONE).strip().partition(":")
    if name != NONE:
        LAYERS[name]  # an unknown name is an error here, before anything is built
    if not text:
        return name, {}
    try:
        call = ast.parse(f"settings({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        settings = {str(word.arg): _value(word.value) for word in call.keywords}
    except (ValueError, SyntaxError):
        raise InvalidArgument(
            f"attention {spec!r}: the settings {text!r} cannot be read; they are name=value pairs of plain values, "
            f"separated by commas. Write for example se:reduction=8 or 'psa:groups=(1,2,4,4),reduction=4'."
        ) from None
    if name == NONE:
        raise InvalidArgument(f"attention {spec!r}: no attention has no settings. Write none.")
    return name, settings


def _value(node: ast.expr) -> Any:
    """Read a plain value; a bare word is a string, so that ``variant=paper`` needs no quotes."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def format_attention(name: str, settings: Mapping[str, Any]) -> str:
    """Write a name and settings as the word that ``parse_attention`` reads.

    >>> format_attention("se", {"reduction": 8})
    'se:reduction=8'
    """
    written = ",".join(f"{key}={value!r}".replace(" ", "") for key, value in sorted(settings.items()))
    return f"{name}:{written}" if written else name
