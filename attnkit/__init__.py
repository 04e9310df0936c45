"""attnkit: the right attention backend on every accelerator, proven at boot on the very card."""

__version__ = "0.1.0"
