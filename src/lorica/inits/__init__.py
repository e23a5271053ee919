"""Initial values of the A and B of a LoRA, one file each; the file name is the value of `init`."""
