"""What large bases cost to load and to train: peaks of memory and times, beside other libraries.

    python -m benchmarks.large --folder SCRATCH            write the shapes, measure, keep results
    python -m benchmarks.large --folder SCRATCH --only 1B  one shape
    python -m benchmarks.large --write docs/performance/large.md

The shapes are Llamas with random weights in bfloat16, in four shards. Each figure is of a fresh
process. SCRATCH needs 16 GB of disk space for both shapes.
"""
