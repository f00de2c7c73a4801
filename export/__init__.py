"""Checkpoint to bundle: graphs, weights, manifest, parity. Imports core, models, engines; torch inside functions."""
