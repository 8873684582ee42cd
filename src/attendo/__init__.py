"""attendo: attention for convolutional networks."""

from attendo._errors import AttendoError
from attendo.layers import layer, list_layers

__version__ = "0.1.0"
__all__ = ["AttendoError", "layer", "list_layers"]
