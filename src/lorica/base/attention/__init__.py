"""How core reaches the attention function of a model: one file for each library of models."""
