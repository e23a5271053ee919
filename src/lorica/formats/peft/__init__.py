"""PEFT's adapter layouts, one file per peft_type; read off peft 0.21.2.

Every setting that changes the result and is not known here is refused: nothing of a foreign
config is passed over.
"""
