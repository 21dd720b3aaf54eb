"""Stages run in order; each is a dataclass of functions that the one training loop drives."""
