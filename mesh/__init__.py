"""The whole: settings, the composition root, the `jc` command and the notebook client.

`mesh.app` is the only place that reads settings and the environment, picks adapters and makes the clock and the
random source. The top room: it may import every other, and none imports it.
"""
