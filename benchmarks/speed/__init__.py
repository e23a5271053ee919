"""What a training step costs: ours, PEFT's, and the floor that no adapter can go below.

    make bench                                            everything: JSON, tables and picture
    python -m benchmarks.speed --only "same work" --rounds 8
    python -m benchmarks.speed --write docs/performance/README.md     the page, from the JSON
    python -m benchmarks.speed.peers.install              the peers, in their own environments

The floor is the frozen base: its forward pass, and its backward pass to its inputs. Every side is a
process of its own with one thread (those that do the same work are in one); they wait for one
another, and take their steps in turn, in an order that changes from round to round. What is
compared is the median of the ratios within a round. Time is that of the process, not of the clock,
so that another program takes no part in it.

Before anything is timed, sides that do the same work have to show that they do: from the same
weights, with B away from zero, the same loss and the same gradient.

    work.py      the model, the rows, the batches        run.py      rounds, gates, JSON
    sides.py     a side: what takes steps                process.py  a side's process, from outside
    ours.py      Lorica's sides                          worker.py   the same, from inside
    peers/       those of other libraries                figures.py  what the rounds say
    sections.py  what is compared with what              page.py, picture.py
"""
