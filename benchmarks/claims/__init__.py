"""Ten claims of the papers, tested on small models, with a verdict for each.

    python -m benchmarks.claims --shared ../shared --jobs 16            all, as JSON
    python -m benchmarks.claims --shared ../shared --only C1 C7         some, into the same JSON
    python -m benchmarks.claims --shared ../shared --quick --only C2    a smoke test: few steps
    python -m benchmarks.claims --write docs/claims.md                  the page, from the JSON

The learning rate of every side of a comparison is chosen in the same way: from a grid, with a seed
and a validation text that are not reported; the grid is extended when its best rate is at an edge.
The chosen rate is then run with three other seeds. verdict.py defines when a claim holds, and was
written before the runs. Every run is a process with one thread and takes half a minute; all of them
take about 90 minutes on one core.

    claim.py      what a claim is             pairs.py      C1, memorising
    verdict.py    when it holds               on_text.py    C2 C3 C4 C6 C7 C8 C10, one text task
    run.py        sweeps, seeds, JSON         packing.py    C5, no training
    page.py       Markdown                    twins.py      C9, in float64
"""
