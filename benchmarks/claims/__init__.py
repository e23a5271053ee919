"""Ten claims of the papers, tried on small models: each reported as found, held or not.

    python -m benchmarks.claims --shared ../shared --jobs 16            all, as JSON
    python -m benchmarks.claims --shared ../shared --only C1 C7         some, into the same JSON
    python -m benchmarks.claims --shared ../shared --quick --only C2    a smoke test: few steps
    python -m benchmarks.claims --write docs/claims.md                  the page, from the JSON

The learning rate of every side of a comparison is chosen alike: a grid, run with a seed and
measured on a text that are not reported, and gone on with at an edge that is the best. The chosen
rate is then run with three other seeds. What counts as holding stands in verdict.py, and was
written before the runs. Every run is in a process with one
thread and takes half a minute; all of them about 90 minutes of one core.

    claim.py      what a claim is             pairs.py      C1, memorising
    verdict.py    when it holds               on_text.py    C2 C3 C4 C6 C7 C8 C10, one text task
    run.py        sweeps, seeds, JSON         packing.py    C5, no training
    page.py       Markdown                    twins.py      C9, in float64
"""
