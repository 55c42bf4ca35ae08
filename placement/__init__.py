"""Where a request runs: cost tiers, and the ranked plan of pools with a reason for every refusal.

How both work stands in this folder's README. Pure functions on values; only modules that build Ray policies on the
ranking may import ray, and no other room's actors are known here. May import `metering` and `clusters`.
"""
