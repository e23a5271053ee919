"""Adapter methods, one per file; the file name is the method's name. See lorica.core.adapter."""
