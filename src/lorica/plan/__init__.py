"""What a run will cost, known before it starts, and which method, rank and rate to take."""
