"""Adapters of other tools, one file per layout, translated into PEFT's names and settings.

Reading is strict, as it is of our own folders: a key that is not understood is an error. What a
folder leaves open is a notice where nothing depends on it, and else an error that says what to
write where.
"""
