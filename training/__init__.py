"""Encoder, adapters and their training around a frozen language model. Needs torch; imports core and models."""
