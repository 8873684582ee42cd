"""Ultralytics trains, saves, fuses and reloads a detector with attention."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from attendo.insertion import attention_parameters, insert, remove
from insertion_networks import network

pytest.importorskip("ultralytics", reason="pip install ultralytics")


def test_its_trainer_trains_attention_and_saves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", os.environ.get("YOLO_CONFIG_DIR", str(tmp_path)))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.chdir(tmp_path)
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Trainer(DetectionTrainer):
        def get_model(self, cfg=None, weights=None, verbose=True):
            model = super().get_model(cfg, weights, verbose)
            insert(model, "eca")
            return model

    pixels = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        Image.fromarray(pixels.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.3 0.3\n")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames:\n  0: thing\n")
    detector = YOLO("yolov8n.yaml", verbose=False)
    detector.train(
        trainer=Trainer, data="data.yaml", epochs=1, imgsz=64, batch=2, device="cpu", workers=0, plots=False,
        project=str(tmp_path / "runs"), verbose=False, val=False, amp=False,
    )  # fmt: skip
    saved = YOLO(str(detector.trainer.save_dir / "weights" / "last.pt")).model
    alphas = [p for p in attention_parameters(saved) if p.shape == (1,)]
    assert len(alphas) == 11
    assert all(p.item() != 0 for p in alphas)
    assert len(remove(saved)) == 11


def test_fusing_its_norms_keeps_attention_at_its_blocks():
    model = network("ultralytics yolov8n")
    insert(model, "eca", input_size=(3, 64, 64))
    for parameter in attention_parameters(model):
        torch.nn.init.constant_(parameter, 0.5)
    x = torch.randn(1, 3, 64, 64)
    want = model(x)[0]
    model.fuse(verbose=False)
    torch.testing.assert_close(model(x)[0], want, rtol=1e-3, atol=1e-3)
    assert len(attention_parameters(model)) == 22
