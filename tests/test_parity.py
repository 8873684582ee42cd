"""Equal to the official code: outputs recorded from it under a deterministic fill, to 1e-5 of the largest value."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import SHARED
from fill import filled, image_like
from parity import MODULES, load_by_position

GOLDEN = SHARED / "golden"

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded outputs are not beside this checkout")


def compare(output: torch.Tensor, record: dict) -> float:
    """Largest difference to a recorded output, relative to its largest value."""
    flat = output.detach().flatten().double()
    want = record["output"]
    pairs = (
        (flat[:32], want["first32"]),
        (flat[-32:], want["last32"]),
        (flat[:: want["strided"]["step"]], want["strided"]["values"]),
        (flat.mean()[None], [want["mean"]]),
        (flat.std(correction=0)[None], [want["std"]]),
        (flat.abs().max()[None], [want["abs_max"]]),
    )
    return (
        max((got - torch.tensor(ref, dtype=torch.float64)).abs().max().item() for got, ref in pairs) / want["abs_max"]
    )


@pytest.mark.parametrize("formula", ["sin", "hash"])
@pytest.mark.parametrize("parity", MODULES, ids=lambda parity: parity.fixture)
def test_a_module_equals_the_official_code(parity, formula):
    fixture = json.loads((GOLDEN / f"{parity.fixture}.json").read_text())
    if formula == "hash" and fixture.get("hash") is None:
        pytest.skip("this source has no parameters to fill twice")
    record = fixture if formula == "sin" else fixture["hash"]
    module = parity.build().eval()
    load_by_position(module, filled(fixture["state_dict"], record["scale"]["weight"], formula))
    x = image_like(fixture["input_shape"])
    with torch.no_grad():
        output = module.gates(x)[0] if parity.gate else module(x)
    assert list(output.shape) == fixture["output_shape"]
    assert compare(output, record) <= 1e-5
