"""Trains one run after another in each process of torchrun, for the tests of several processes."""

import json
import sys

import torch

torch.set_num_threads(1)

import lorica  # noqa: E402

for settings in json.loads(sys.argv[1]):
    lorica.train(**settings, show=False)
