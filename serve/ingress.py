"""The ingress as a Serve deployment: composes the door and the HTTP application, and watches pools and payments."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray.serve as ray_serve
from fastapi import FastAPI
from ray.actor import ActorHandle
from ray.serve.handle import DeploymentHandle

from serve.composition import Composition
from serve.dispatch import ServeDispatch
from serve.door import Dispatch
from serve.holds import HoldLedger
from serve.http_application import build_app
from serve.loopback import keep_to_loopback
from serve.payment_watch import PaymentWatch
from serve.pool_waker import PoolWaker
from serve.pool_watch import PoolWatch
from serve.ray_hold_ledger import RayHoldLedger
from serve.serve_look import ServeLook


class Ingress:
    """A Serve deployment's class: builds the door and the HTTP application inside the replica."""

    def __init__(
        self,
        compose: Callable[[Dispatch, HoldLedger], Composition],
        ledger: ActorHandle[Any],
        group_key: dict[str, Any],
        pools: dict[str, DeploymentHandle[Any]],
        meters: Callable[[], Sequence[ActorHandle[Any]]],
        operator_account: str,
    ) -> None:
        keep_to_loopback()
        made = compose(ServeDispatch(pools, meters), RayHoldLedger(ledger))
        planner, app_name = made.door.planner, ray_serve.get_replica_context().app_name
        look = ServeLook(app_name, made.door.pools, made.selectors, made.nodes, meters=meters)
        watch = PoolWatch(planner, look, next_to_wake=planner.next_to_wake, wake=PoolWaker(planner, pools).wake)
        payments = PaymentWatch(
            ledger, made.payments, every_s=made.recharge_every_s, clock=time.monotonic, wall_clock_ns=time.time_ns
        )
        self._app = build_app(
            made.door,
            ledger,
            group_key,
            meters=meters,
            operator_account=operator_account,
            pins=made.pins,
            limits=made.limits,
            payments=made.payments,
            background=(watch.run, payments.run),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve's hook for an application made at the replica's start."""
        return self._app
