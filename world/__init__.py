"""A small invented world, written out as text.

One seed fixes the inhabitants (people, towns, things); every document is then a draw over that
world from its own seed. Two families of text come out of it and never mix: the documents that the
base model is pretrained on, and three fine-tuning tasks (tickets, translation, reviews) that
pretraining never shows. So a gain in fine-tuning is learnt in fine-tuning, on any machine, with no
download. A scraped corpus was rejected: it brings licences, size and unknown overlap.
"""
