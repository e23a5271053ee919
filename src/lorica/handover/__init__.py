"""Hand adapters and models over to other runtimes, in the form that each one computes right."""
