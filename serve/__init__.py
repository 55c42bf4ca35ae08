"""The door and the engines: the HTTP ingress, the OpenAI shapes, the replica around vLLM, the meter as an actor.

May import ray. `vllm` is imported in ``engine*.py`` alone, and only inside a replica's process. Reads no settings
and no environment: the composition root hands everything in.
"""
