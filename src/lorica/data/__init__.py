"""Rows to batches: read (source), write as text (template), to ids (tokenise), fit, batch."""
