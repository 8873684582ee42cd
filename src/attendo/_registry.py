"""Name -> thing. A name taken twice is an error; an unknown name gets "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from attendo._errors import InvalidArgument, UnknownName

T = TypeVar("T")
SHOWN = 30  # names that an error message lists


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the half-sentence that helps someone who mistyped ``name``: close matches, else all that is known."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"Known: {', '.join(known[:SHOWN])}{more}."


class Registry(Generic[T]):
    """Things by name.

    Args:
        kind: what a thing is called in error messages ("layer", "model").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``.

        Raises:
            InvalidArgument: the name is taken.
        """

        def file(thing: T) -> T:
            if name in self._things:
                raise InvalidArgument(
                    f"{self.kind} {name!r}: registered twice; a name belongs to one thing. Choose another name."
                )
            self._things[name] = thing
            return thing

        return file

    def __getitem__(self, name: str) -> T:
        try:
            return self._things[name]
        except KeyError:
            raise UnknownName(f"{self.kind} {name!r}: not known. {did_you_mean(name, self._things)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)
