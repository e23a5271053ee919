"""How the factors of a LoRA begin, one file per start: the file name is the start's name."""
