"""A limit on how often one optimizer step may pass over the rows. Without torch."""

from lorica.errors import ConfigError

MAX_PASSES = 1000
"""Passes over the rows that one optimizer step may make."""


def check_rows_per_step(rows_per_step: int, rows: int) -> None:
    """Raises: ConfigError if an optimizer step would pass over the rows again and again."""
    if rows_per_step > MAX_PASSES * rows:
        raise ConfigError(
            f"one optimizer step would use {rows_per_step:,} rows, and there are {rows:,}.",
            fix="lower gradient_accumulation_steps or micro_batch_size",
        )
