"""Training: speed, memory, failures."""
