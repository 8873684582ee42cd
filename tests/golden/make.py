"""Write networks.json: outputs of the transcribed official networks (tests/official.py) under a deterministic fill.

Run from the repository: python tests/golden/make.py. The transcriptions were found equal to outputs recorded from the
repositories named, see docs/conformance.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from fill import image_like
from test_conversion import published

SOURCES = {
    "jongchan_cbam(18)": "https://github.com/Jongchan/attention-module",
    "jongchan_bam(18)": "https://github.com/Jongchan/attention-module",
    "moskomule_se(18)": "https://github.com/moskomule/senet.pytorch",
    "moskomule_se(20, classes=10)": "https://github.com/moskomule/senet.pytorch",
    "eca(18, (3, 5, 7, 7))": "https://github.com/BangguWu/ECANet",
    "epsanet(50)": "https://github.com/murufeng/EPSANet",
    "blog_cbam(18)": "the CBAM-ResNet with CIFAR stem of the blogs",
    "blog_se(18)": "the SE-ResNet with CIFAR stem of the blogs",
    "simam_repository(18, 'simam')": "https://github.com/ZjjConan/SimAM",
    "triplet(18)": "https://github.com/landskape-ai/triplet-attention",
}


def main() -> None:
    kept = {}
    torch.set_num_threads(1)
    for call, source in SOURCES.items():
        model, shape = published(call), [2, 3, 64, 64]
        with torch.no_grad():
            out = model(image_like(shape)).double()
        kept[call] = {
            "source": source,
            "input": shape,
            "parameters": sum(p.numel() for p in model.parameters()),
            "first": [round(v, 9) for v in out.flatten()[:8].tolist()],
            "mean": out.mean().item(),
            "std": out.std().item(),
            "largest": out.abs().max().item(),
        }
    Path(__file__).with_name("networks.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
