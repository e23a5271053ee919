"""The base that comes with lorica: a small Llama, pretrained by world/pretrain.py."""

from pathlib import Path

NAME = "bundled"
FOLDER = Path(__file__).parent / "weights"
DOMAIN = FOLDER / "domain.jsonl"
"""Documents of the kinds that it was pretrained on, held out from it: to see what it forgets."""
