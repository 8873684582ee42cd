"""Writes docs/conformance.md and docs/published-numbers.md from measurements, and tests/golden/parity.json under them.

    python tests/conformance.py              write the pages
    python tests/conformance.py --measure    measure parity again first (needs the recorded outputs beside the checkout)

It stands among the tests because it compares with the second implementation in official.py. The pages hold bounds
instead of measured differences, whose last digits vary from machine to machine; test_conformance.py measures again.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import torch
from torch import nn

import attendo
from attendo.layers._base import LAYERS
from attendo.profiling import count

ROOT = Path(__file__).parents[1]
PARITY = ROOT / "tests" / "golden" / "parity.json"
PAGES = {"conformance": ROOT / "docs" / "conformance.md", "published": ROOT / "docs" / "published-numbers.md"}
BOUNDS = (1e-6, 1e-5, 1e-4)

ECA, EPSA = "ECA-Net README", "EPSANet README"
# name: parameters (M), MACs (G), top-1, where; as printed by the source, see the notes on units
PAPERS = {
    "se_resnet50": ("28.1", "3.87", "76.71", "SENet, table 2"),
    "eca_resnet18": ("11.15*", "1.70*", "70.92", ECA),
    "eca_resnet34": ("20.79*", "3.43*", "74.21", ECA),
    "eca_resnet50": ("24.37*", "3.86*", "77.42", ECA),
    "eca_resnet101": ("42.49*", "7.35*", "78.65", ECA),
    "eca_resnet152": ("57.41*", "10.83*", "78.92", ECA),
    "eca_mobilenetv2": ("3.34*", "0.3199", "72.56", ECA),
    "cbam_resnet50": ("28.09", "3.864", "77.34", "CBAM, table 4"),
    "epsanet50_small": ("22.56", "3.62", "77.49", EPSA),
    "epsanet50_large": ("27.90", "4.72", "78.64", EPSA),
    "epsanet101_small": ("38.90", "6.82", "78.43", EPSA),
    "epsanet101_large": ("49.59", "8.97", "79.38", EPSA),
}


def bound(difference: float) -> float:
    """The smallest bound that a measured difference keeps, with a factor of two to spare below the last."""
    if difference > BOUNDS[-1]:
        raise ValueError(f"a difference of {difference:.1e} is no parity")
    return next((limit for limit in BOUNDS if 2 * difference <= limit), BOUNDS[-1])


def measure() -> list[dict]:
    """Parity with every recorded output and every transcription, as rows for parity.json."""
    import test_conversion as conversion

    rows = []
    for parity in conversion.MODULES:
        fixture = json.loads((conversion.GOLDEN / f"{parity.fixture}.json").read_text())
        module = parity.build()
        name = next((name for name in LAYERS if LAYERS[name] is type(module)), type(module).__name__)
        found = max(conversion.module_difference(parity, formula) for formula in formulas(fixture))
        rows.append({"kind": "mechanism", "ours": name, "fixture": parity.fixture, **about(fixture, found)})
    for name in conversion.fixtures("model"):
        fixture = json.loads((conversion.GOLDEN / f"{name}.json").read_text())
        found = max(conversion.network_difference(name, formula) for formula in ("sin", "hash"))
        state = conversion.filled(fixture["state_dict"], 1.0, "hash")
        ours = str(attendo.checkpoints.convert(state).recipe)
        rows.append({"kind": "network", "ours": ours, "fixture": name, **about(fixture, found)})
    for ours, call, side in conversion.NETWORKS:
        found = conversion.call_difference(call, side)
        rows.append({"kind": "transcription", "ours": ours, "call": call, "side": side, "bound": bound(found)})
    for name in conversion.TIMM:
        found = conversion.timm_difference(name)
        rows.append({"kind": "timm", "ours": name, "bound": bound(found)})
    return rows


def formulas(fixture: dict) -> list[str]:
    return ["sin", "hash"] if fixture.get("hash") else ["sin"]


def about(fixture: dict, found: float) -> dict:
    source = fixture["source"]
    if "repo" in source:
        text = f"[{source['repo'].removeprefix('github.com/')}](https://{source['repo']}) `{source['path']}`"
        text += f" @ {source['commit'][:7]}" if "commit" in source else ""
    elif "package" in source:
        text = f"{source['package']} {source['version']}"
    else:
        text = f"the blogs: {source['what']}"
    return {"source": text, "bound": bound(found)}


def deviations(name: str) -> str:
    """What a mechanism's file says of its deviations, on one line."""
    text = importlib.import_module(LAYERS[name].__module__).__doc__ or ""
    match = re.search(r"^(Deviations.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if name.startswith("cbam_"):
        return "a half of `cbam`"
    return " ".join(match[1].split()).removeprefix("Deviations: ") if match else "not from a paper: the control"


def shown(limit: float) -> str:
    return f"< {limit:.0e}".replace("e-0", "e-")


def conformance_page(rows: list[dict]) -> str:
    """The text of docs/conformance.md."""
    mechanisms = [row for row in rows if row["kind"] == "mechanism"]
    lines = [
        "# Is this implementation the paper's?",
        "",
        "Generated by `python tests/conformance.py`; `tests/test_conformance.py` measures again and compares.",
        "Parity is the largest difference between our output and the source's, relative to the largest output, under",
        "deterministic weights (two different fills) in float32 on a CPU. Each bound leaves a factor of two. For whole",
        "networks the source's state dict goes through `attendo.load_weights`, which finds out what it is by itself.",
        "",
        "## Mechanisms",
        "",
        "Parameters and MACs of one mechanism with default settings on a map of 64 x 14 x 14.",
        "",
        "| mechanism | parameters | MACs | equal to (parity) | deviations |",
        "|---|---|---|---|---|",
    ]
    for name in attendo.list_layers():
        counted = count(attendo.layer(name, 64), (64, 14, 14))
        sources = [f"{row['source']} ({shown(row['bound'])})" for row in mechanisms if row["ours"] == name]
        cells = (
            f"`{name}`",
            f"{counted.parameters:,}",
            f"{counted.macs:,}",
            "<br>".join(dict.fromkeys(sources)) or "-",
        )
        lines.append(f"| {' | '.join(cells)} | {deviations(name)} |")
    lines += [
        "",
        "## Networks against outputs recorded from the sources' own code",
        "",
        "| source's network | what `load_weights` builds | source | parity |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row["kind"] == "network":
            theirs = re.sub(r"^seed\d+_", "", row["fixture"])
            lines.append(f"| {theirs} | `{row['ours']}` | {row['source']} | {shown(row['bound'])} |")
    lines += [
        "",
        "## Networks against a second implementation",
        "",
        "`tests/official.py` writes the published networks again under the repositories' names. It was compared with",
        "the recorded outputs above, and takes their place where those are absent and at other depths.",
        "",
        "| ours | official call | input | parity |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row["kind"] == "transcription":
            lines.append(f"| {row['ours']} | `{row['call']}` | {row['side']} | {shown(row['bound'])} |")
    lines += ["", "## timm's networks", "", "| timm | parity |", "|---|---|"]
    lines += [f"| {row['ours']} | {shown(row['bound'])} |" for row in rows if row["kind"] == "timm"]
    lines += [
        "",
        "## Where sources disagree with each other",
        "",
        "- **SE**: the authors' Caffe code has biases; moskomule/senet.pytorch, ZjjConan/SimAM and copies do not.",
        "  timm rounds the hidden width up to a multiple of 8 (64 channels: 8, not 4). All load; shapes decide.",
        "- **ECA**: the released checkpoints use kernels 3,5,7,7 (18), 3,3,5,7 (34, 101, 152) and 3,5,5,7 (50); the",
        "  paper's formula gives 3,5,5,5 and 5,5,5,7, which timm uses. Named networks have the checkpoints' kernels.",
        "- **CBAM**: the authors' code has biases in the MLP and BatchNorm after the spatial convolution, and sees the",
        "  maximum first; luuuyi/CBAM.PyTorch, and with it most blogs, have none of these. `variant` chooses.",
        "- **BAM**: the authors' code multiplies its two branches, the paper adds them.",
        "- **PSA**: the authors' code feeds all channels to every branch and joins the branches in reverse order; the",
        "  paper's text splits the channels. EPSANet's large networks are in no repository: kernels 3,5,5,7 and",
        "  3,3,3,9 (doubled width, 32 groups) both give the published parameter counts exactly.",
        "- **SE-ResNets** of Cadene, timm (`legacy_`) and osmr stride in the first 1x1 convolution and are other",
        "  networks; so are CIFAR ResNets with parameter-free shortcuts (option A). Their checkpoints are refused.",
        "",
        "What no shape tells is taken as follows when a checkpoint is loaded without a model: ResNets stride in the",
        "3x3 convolution; nothing is anti-aliased; SimAM's lambda is 1e-4.",
        "",
    ]
    return "\n".join(lines)


def published_page() -> str:
    """The text of docs/published-numbers.md."""
    lines = [
        "# Published numbers",
        "",
        "Generated by `python tests/conformance.py`. Parameters and MACs of every registered network in decimal units",
        "(1 M = 1e6, 1 G = 1e9), beside what the papers and repositories print. MACs are those of convolutions and",
        "matrix products for one image; norms, activations, pools and the products with gates are not counted. Tools",
        "that count them print 1 or 2 % more.",
        "",
        "| network | input | parameters | M | MACs (G) | published M | published G | published top-1 | source |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in attendo.list_models():
        lines.append(published_row(name))
    lines += [
        "",
        "\\* ECA-Net's script divides by 1024 x 1024 and 1024 x 1024 x 1024. Its 24.37 M are 25,557,112 / 1,048,576,",
        "so 25.56 M in the units of everyone else, and its 3.86 G count norms and pools too: convolutions and matrix",
        "products alone are 4.089e9 / 1,073,741,824 = 3.81. It cannot stand in one column with EPSANet or CBAM.",
        "",
        "SENet's 3.87 G belong to a ResNet that strides in the first 1x1 convolution; ours strides in the 3x3, as the",
        "official code of all later mechanisms, and needs 4.09 G. CBAM's 3.864 G fit the former too, by our inference.",
        "",
        "EPSANet-50 is also found with 22,614,835 parameters: that counts the 53,120 running statistics of BatchNorm.",
        "",
        "At 224 x 224 the CIFAR-stem networks need 63.60 G (`se_resnet50_cifar`) and 63.62 G (`cbam_resnet50_cifar`).",
        "",
    ]
    return "\n".join(lines)


def published_row(name: str) -> str:
    """One line of the table."""
    with torch.device("meta"):
        model: nn.Module = attendo.create_model(name)
    side = 32 if name.endswith("_cifar") else 299 if "inception_v3" in name else 224
    counted = count(model, (3, side, side))
    params, macs, top1, source = PAPERS.get(name, ("", "", "", ""))
    cells = (name, side, f"{counted.parameters:,}", f"{counted.parameters / 1e6:.2f}", f"{counted.macs / 1e9:.3f}")
    return f"| {' | '.join(map(str, (*cells, params, macs, top1, source)))} |"


def main() -> None:
    torch.set_num_threads(1)
    if "--measure" in sys.argv:
        PARITY.write_text(json.dumps(measure(), indent=1) + "\n")
    PAGES["conformance"].write_text(conformance_page(json.loads(PARITY.read_text())))
    PAGES["published"].write_text(published_page())


if __name__ == "__main__":
    main()
