"""The offline bench: phantoms, simulated scans, training."""
