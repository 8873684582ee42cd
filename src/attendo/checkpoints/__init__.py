"""Weights: files that describe themselves, and those that official code published."""

from __future__ import annotations

from attendo.checkpoints.conversion import Conversion, convert
from attendo.checkpoints.files import Metadata, load, read_metadata, save
from attendo.checkpoints.hub import from_pretrained, push_to_hub
from attendo.checkpoints.loading import load_into, load_weights
from attendo.checkpoints.recipe import Recipe
from attendo.checkpoints.rewriting import Converted, convert_file

__all__ = [
    "Conversion",
    "Converted",
    "Metadata",
    "Recipe",
    "convert",
    "convert_file",
    "from_pretrained",
    "load",
    "load_into",
    "load_weights",
    "push_to_hub",
    "read_metadata",
    "save",
]
