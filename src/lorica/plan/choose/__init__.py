"""Which method, rank and rate to take for these rows on this machine, each with its reason.

The steps, one file each: `quality` (what is wrong with the rows), `rank` (how many parameters the
rows ask for), `flowchart` (which method), `fit` (what must change to fit the memory), `rate` and
`run_length` (how to train), `recipe` (the recipe, with its reasons). `evidence.toml` holds what the
reasons cite. Nothing here imports torch, and nothing reads rows or files: `situation` holds what
was read.
"""
