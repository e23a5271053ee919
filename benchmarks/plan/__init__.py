"""Predicted against measured: what `lorica plan` says of 30 runs, and what these runs then cost.

    python -m benchmarks.plan                      all runs that are not in the results yet
    python -m benchmarks.plan --only "58M lora"    those whose name begins so, again
    python -m benchmarks.plan --write              docs/planning/README.md from the results

Every run is `lorica train` in a fresh process, whose peak of resident memory is what the system
counts when it ends. This process stays small: a child begins with the peak of its parent.
The bases: stories260K (from --shared), the bundled one (5 M), and a Llama with random weights
(58 M), which is written to a temporary folder; what a step costs does not depend on the weights.
Rows are as long as Alpaca's, in Alpaca's format, so that they share prefixes.
"""
