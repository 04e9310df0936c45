"""Decode with multi-head latent attention."""
