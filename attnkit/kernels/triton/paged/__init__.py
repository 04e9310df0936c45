"""Paged and packed attention: prefill and decode."""
