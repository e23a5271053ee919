"""Measurements of serving: decoding, mixed lengths, HTTP."""
