"""Hot functions, each beside its plain reference."""
