"""Adapter methods, one file or folder each; its name is the method's name. See
lorica.core.adapter."""
