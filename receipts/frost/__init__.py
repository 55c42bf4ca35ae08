"""FROST(Ed25519, SHA-512), RFC 9591: a threshold of participants makes one ordinary Ed25519 signature.

Files follow the rounds: ``keygen``, ``round_one`` (commit), ``round_two`` (share), ``aggregate``. They hold
pure functions on values: no disk, no clock, no network, no Ray; randomness is passed in. Everything that a
participant sends is bytes until one of these functions has decoded it. The one error is ``FrostError``,
which names the culprits. This code is unaudited.
"""
