"""Hypothesis without its time limit: how long an example takes is the machine's matter, and judges no law."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
