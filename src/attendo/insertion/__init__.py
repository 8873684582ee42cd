"""Attention in any network: insert, replace, remove, fold, without losing pretrained weights."""

from attendo.insertion.folding import Folding, Foldings, fold
from attendo.insertion.placement import insert, remove, sites
from attendo.insertion.replacement import replace
from attendo.insertion.sites import Site, Sites
from attendo.insertion.weights import (
    attention_parameters,
    attention_state_dict,
    freeze_backbone,
    load_attention,
    save_attention,
)

__all__ = [
    "Folding",
    "Foldings",
    "Site",
    "Sites",
    "attention_parameters",
    "attention_state_dict",
    "fold",
    "freeze_backbone",
    "insert",
    "load_attention",
    "remove",
    "replace",
    "save_attention",
    "sites",
]
