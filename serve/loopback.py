"""Keeping a replica's own port off the network when its Ray node is on loopback.

Ray Serve 2.60 opens a gRPC port in every replica, for calls between deployments, on all addresses of the machine
("[::]:0" is written into its replica). It has no setting for the address, and the calls are pickled Python: whoever
reaches the port runs code. Remove this when Ray binds that port to the node's address.
"""

import importlib
from typing import Any

import ray

_ANY_ADDRESS = "[::]"
_LOOPBACK = "127.0.0.1"


def keep_to_loopback() -> None:
    """To be called in a replica's constructor, which runs before Ray Serve opens the port."""
    if ray.util.get_node_ip_address() != _LOOPBACK:
        return
    serve_replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = serve_replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:  # noqa: ANN401 - gRPC's own types
        return add_port(server, address.replace(_ANY_ADDRESS, _LOOPBACK))

    serve_replica.add_port_to_grpc_server = add_loopback_port
