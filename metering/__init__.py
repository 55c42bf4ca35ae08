"""The energy room: counters, the book of closed intervals, and what each request drew.

One host meter per physical machine owns each energy counter once, closes its intervals, divides them
among the requests whose engine steps ran in them, and keeps every settlement until it is acknowledged.
Integers only, in microjoules; what was measured is never multiplied and never lost: the accounts always
sum to what the counters counted.

May touch: device counters, ``/proc``, a Unix socket, its own journal, and `clusters` for the silicon catalogue.
May not touch: Ray, vLLM, receipts, HTTP, settings, the environment. The caller ticks it; it starts no thread
of its own except the step reporter's, in the engine's process, while the meter is behind.
`metering.engine_steps` is imported inside the engine's child process and needs the standard library only.
"""
