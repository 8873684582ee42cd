"""Name -> thing. A name taken twice is an error; an unknown name gets "did you mean"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from attendo._errors import InvalidArgument, UnknownName

T = TypeVar("T")
SHOWN = 30  # names that an error message lists
CLOSE = 3  # names that it guesses


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the half-sentence that helps someone who mistyped ``name``: close matches, else all that is known."""
    known = sorted(set(known))
    edits = {other: _edits(name.lower(), other) for other in known}
    alike = [other for other in known if 2 * edits[other] < len(name) + len(other)]
    close = sorted(alike, key=lambda other: (edits[other], len(other)))[:CLOSE]
    close = [other for other in close if edits[other] <= edits[close[0]] + 1]
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"Known: {', '.join(known[:SHOWN])}{more}."


def _edits(a: str, b: str) -> float:
    """Return what the cheapest edits cost that make one word of the other.

    A letter too many or too few costs 1, as do two neighbours that changed places; another letter costs 1.4. Words
    without a common letter thus cost more than half of their letters.
    """
    before: list[float] = []
    last = [float(j) for j in range(len(b) + 1)]
    for i, letter in enumerate(a, 1):
        row = [float(i)]
        for j, other in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (0 if letter == other else 1.4))
            if i > 1 and j > 1 and letter == b[j - 2] and other == a[i - 2]:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


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
