"""Rows to batches.

config           the settings under `data`
source, readers  rows of a file or a hub data set
row_format       the format of the rows, from their columns
render           rows to text, by chat template (render_chat) or prompt (render_prompt)
tokenise         text to ids and labels
pipeline, cache  one file through all of these, in chunks; kept between commands
token_store      the tokenised rows as flat arrays; dataset: examples on access
overlong, split  the length limit; training and validation rows
load             all of it for a training
batch            examples to tensors, packed or padded
"""
