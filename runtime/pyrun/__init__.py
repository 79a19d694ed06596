"""pyrun: a container runtime built from Linux primitives, made to be read."""

__version__ = "0.1.0"
