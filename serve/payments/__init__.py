"""How money comes in and goes back: the protocol that the mesh knows, and its adapters."""
