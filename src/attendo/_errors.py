"""Every error that attendo raises on purpose.

    AttendoError
    ├── UnknownName         (KeyError)      a name that no registry knows
    ├── InvalidArgument     (ValueError)    an argument that cannot work, or two that contradict each other
    ├── MissingDependency   (ImportError)   an optional package is needed; the message is the pip line
    ├── DataError           (ValueError)    a data set that cannot be read or makes no sense
    ├── CheckpointError     (ValueError)    a weight file that is damaged, hostile or for another network
    ├── TrainingError       (RuntimeError)  a training run that cannot go on
    └── ResultsError        (RuntimeError)  a results directory that holds something else than was asked for

The second parent is the built-in error that a caller who does not know attendo would catch.
A message says what was asked, what came, the rule, and the way out.
"""


class AttendoError(Exception):
    """The root of all errors raised on purpose."""


class UnknownName(AttendoError, KeyError):
    """A name that the registry asked does not know."""

    def __str__(self) -> str:  # KeyError would show the repr, with quotes and escaped line breaks
        return str(self.args[0]) if self.args else ""


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
