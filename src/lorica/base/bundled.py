"""The base that comes with lorica: a small Llama, pretrained by world/pretrain.py."""

from pathlib import Path

NAME = "bundled"
FOLDER = Path(__file__).parent / "weights"
