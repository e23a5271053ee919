"""The studies that ship, with what the articles say of them: what held, and what did not.

lorica compare studies/NAME.yaml --output runs/NAME     (for each study; its head has the rows)
python -m benchmarks.studies runs/NAME ... --write docs/studies
"""
