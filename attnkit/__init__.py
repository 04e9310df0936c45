"""attnkit: the right attention backend on every accelerator, validated at boot on the device that will serve."""

__version__ = "0.1.0"
