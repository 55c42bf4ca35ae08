"""Which silicon there is, whose, where and on which grid, and the files that start real clusters.

Values and tables: the silicon catalogue, operators and sites, grid carbon intensity, the locked environments in
``locks/`` and the default ``local.yaml``. The lowest room: it imports no other.
"""
