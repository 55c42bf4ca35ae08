"""The composition root: reads settings, picks adapters, starts every part, and stops what it started.

The order is that of need: Ray, the signers and the ledger that they sign for, a host meter per physical host, the
pools (an engine takes longest), and last the ingress, so that an open port means a mesh that answers.
"""

import asyncio
import hashlib
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mesh.carbon_check import check_carbon
from mesh.engine_log import last_reason, last_reason_in
from mesh.errors import StartFailed
from mesh.fast_path import fast_path_environment, forget_sockets
from mesh.host_meters import HostMeters
from mesh.hosts import Host
from mesh.meter_enrolments import MeterEnrolments
from mesh.meter_setup import HostMeterSetup
from mesh.nodes_file import NodesFile
from mesh.payment_setup import check_payments, start_payments
from mesh.placement_setup import (
    NodeSelectors,
    account_pins,
    node_catalogue,
    node_selectors,
    rates_of,
    start_carbon_feed,
)
from mesh.pool_setup import deadlines_of, known_pool, pool_deployment, vllm_engine
from mesh.progress import Progress, Step
from mesh.ray_session import RaySession, start_ray, stop_ray
from mesh.run_state import DataFolder, RunState
from mesh.settings import PoolSettings, Settings
from placement.tiers import TierClassifier
from receipts.group_record import GroupRecord
from receipts.share_secret import ShareSecretSource, create_development_secret
from receipts.signer import Signer
from receipts.signer_policy import ReceiptRules
from serve.door import Dispatch, Door, Price
from serve.door_limits import DoorLimits
from serve.engine_spec import EngineSpec
from serve.holds import HoldLedger, Holds
from serve.pool_health import PoolHealth
from serve.request_pins import RequestPins

if TYPE_CHECKING:  # ray reads its environment when it is imported, so `start_ray` imports it first
    from ray.actor import ActorHandle

    from receipts.signer_actors import RaySigner
    from serve.composition import Composition

_POLL_S = 0.2
_STOPPING_MARGIN_S = 5.0
# So that it is the ingress that gives a slow client up, with its reason in the log.
_INGRESS_FIRST_S = 5.0
_DEFAULT_ACCOUNT = "default"
OPERATOR_ACCOUNT = "mesh-operator"
_SIGNERS = 5
_THRESHOLD = 3
_SOCKET_PATH_BYTES = 107
_SHARE_SECRET_VARIABLE = "JOULE_MESH_SHARE_SECRET"  # noqa: S105 - the variable's name


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningMesh:
    """A mesh that answers. ``first_key`` is made at the very first start, None later; both keys are secrets.

    ``parts`` holds the actors' handles: Ray ends an actor when the last handle in its owner's process is gone.
    """

    state: RunState
    dashboard_url: str | None
    first_key: str | None
    operator_key: str
    folder: DataFolder
    parts: tuple[object, ...]

    def announce_ready(self) -> None:
        """Let `jc up --detach`, and whoever else looks, know that it answers."""
        self.folder.write(self.state)


@contextmanager
def start_mesh(
    settings: Settings,
    progress: Progress,
    stop: threading.Event,
    *,
    engine: Callable[[PoolSettings, Settings], EngineSpec] | None = None,
    signer_type: Callable[..., Signer] = Signer,
    nodes_file: NodesFile | None = None,
) -> Iterator[RunningMesh]:
    """Start every part, yield when the mesh answers, and stop what was started, whatever happens.

    ``engine`` says how a pool's replicas start their engine; without it, `vllm_engine`. ``signer_type`` is as for
    `SignerSettings`. ``nodes_file``: the local cluster's Ray nodes, where it is to have several.

    Raises:
        BadSettings: a grid has no carbon intensity, or its feed cannot work; or the payment provider's secrets are
            missing.
        StartFailed: a part could not start, or ``stop`` was set meanwhile; the message is that part's own reason.
    """
    check_carbon(settings, os.environ)
    check_payments(settings, os.environ)
    folder = DataFolder(settings.mesh.data_dir)
    folder.hold()
    try:
        if not os.environ.get("RAY_ADDRESS"):  # in a joined cluster the port may be its Serve's, which we share
            _check_port(settings.mesh.host, settings.mesh.port)
        with progress.step("Ray"):
            fast_path = _fast_path(settings, os.environ)
            session = start_ray(settings.mesh.name, settings.mesh.data_dir, os.environ, stop, nodes_file, fast_path)
        start = _Start(settings, progress, stop, folder, session, engine or vllm_engine, signer_type)
        try:
            yield start.run()
        finally:
            with progress.step("stopped"):
                start.close()
                stop_ray(session, within_s=settings.deadlines.stop_s + _STOPPING_MARGIN_S)
                if fast_path:
                    forget_sockets(settings.mesh.data_dir)
    finally:
        folder.release()


class _Start:
    """One start of a mesh, part by part."""

    def __init__(
        self,
        settings: Settings,
        progress: Progress,
        stop: threading.Event,
        folder: DataFolder,
        session: RaySession,
        engine: Callable[[PoolSettings, Settings], EngineSpec],
        signer_type: Callable[..., Signer],
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._stop = stop
        self._folder = folder
        self._session = session
        self._engine = engine
        self._signer_type = signer_type
        self._parts: list[object] = []
        self._signers: Mapping[int, RaySigner] = {}
        self._enrolment: MeterEnrolments | None = None
        self._meters = HostMeters(
            partial(meter_setup, settings),
            session.namespace,
            is_cluster_ours=session.is_ours,
            catalogue=node_catalogue(settings),
        )

    def run(self) -> RunningMesh:
        """Start everything; the ingress answers when this returns."""
        from ray.exceptions import RayError

        try:
            return self._run()
        except RayError as failure:
            reason = str(getattr(failure, "cause", None) or failure).strip().rpartition("\n")[2]
            raise StartFailed(f"a part of the mesh did not start: {reason} (logs: {self._session.logs})") from failure

    def close(self) -> None:
        """Stop what runs in this process; nothing here uses Ray afterwards."""
        self._meters.stop()
        if self._enrolment is not None:
            self._enrolment.stop()

    def _run(self) -> RunningMesh:
        import ray

        hosts = self._meters.find_hosts()
        if not hosts:
            raise StartFailed("no node of the Ray cluster answers")
        with self._progress.step("signers and ledger"):
            ledger, group_key = self._start_receipts(hosts)
        self._give_up_if_asked()
        with self._progress.step("host meter"):
            self._start_meters(hosts)
            self._refuse_nodes()
        self._give_up_if_asked()
        with self._progress.step("weights, engine and ingress") as step:
            self._deploy(ledger, group_key, step)
        first_key = None
        if not ray.get(ledger.has_keys.remote()):
            first_key = ray.get(ledger.create_key.remote(_DEFAULT_ACCOUNT, "first")).secret
        mesh = self._settings.mesh
        return RunningMesh(
            state=RunState(
                pid=os.getpid(),
                url=f"http://{mesh.host}:{mesh.port}",
                ray_address=self._session.address,
                namespace=self._session.namespace,
                logs=str(self._session.logs),
                is_ray_ours=self._session.is_ours,
            ),
            dashboard_url=self._session.dashboard_url,
            first_key=first_key,
            operator_key=ray.get(ledger.create_key.remote(OPERATOR_ACCOUNT, "first request")).secret,
            folder=self._folder,
            parts=tuple(self._parts),
        )

    def _start_receipts(self, hosts: Sequence[Host]) -> tuple["ActorHandle[Any]", dict[str, Any]]:
        """Five signers, spread over the hosts; the ledger, here; and what `/v1/keys/group` answers."""
        import ray

        from receipts.ledger_actor import LedgerSettings, signer_group, start_ledger
        from receipts.signer_actors import SignerSettings, start_signers

        data_dir, namespace = self._settings.mesh.data_dir, self._session.namespace
        secret = self._share_secret()
        signers = start_signers(
            [
                SignerSettings(
                    identifier=identifier,
                    folder=data_dir / "signers" / str(identifier),
                    share_secret=secret,
                    make_policy=partial(ReceiptRules, wall_clock_ns=time.time_ns),
                    signer_type=self._signer_type,
                )
                for identifier in range(1, _SIGNERS + 1)
            ],
            [host.node_id for host in hosts],
        )
        ledger = start_ledger(
            LedgerSettings(
                url=self._settings.ledger_url,
                connect_signers=signer_group(list(signers), namespace, data_dir / "group.json"),
                most_unsigned=self._settings.ledger.most_unsigned,
            ),
            namespace=namespace,
            node_id=ray.get_runtime_context().get_node_id(),
        )
        self._signers = signers
        self._parts += [signers, ledger]
        record = cast("GroupRecord", ray.get(ledger.group_record.remote()))
        self._folder.hold_group(record.key_id)
        return ledger, _group_key(record)

    def _share_secret(self) -> ShareSecretSource:
        if _SHARE_SECRET_VARIABLE in os.environ:
            return ShareSecretSource(environment_variable=_SHARE_SECRET_VARIABLE)
        path = self._settings.mesh.data_dir / "development-share-secret"
        create_development_secret(path, secrets.token_bytes)
        self._progress.say(f"development share secret beside the shares; set {_SHARE_SECRET_VARIABLE} to keep it apart")
        return ShareSecretSource(file=path)

    def _start_meters(self, hosts: Sequence[Host]) -> None:
        """One meter per physical host, however many Ray nodes it runs; the signers get to know each one's key."""
        for host in hosts:
            card, notes = self._meters.start(host)
            for note in notes:
                self._progress.say(note)
            if card.energy_method is None:
                self._progress.warn(f"nothing can be metered on {card.node}: requests there are NOT BILLED")
        self._enrolment = MeterEnrolments(self._signers, self._meters.meters, needed=_THRESHOLD)
        self._enrolment.start()
        self._meters.watch(self._enrolment)

    def _refuse_nodes(self) -> None:
        refusals = self._meters.inventory().refusals()
        if refusals:
            raise StartFailed("\n".join(["nodes are refused; correct their labels or the settings:", *refusals]))

    def _deploy(self, ledger: "ActorHandle[Any]", group_key: dict[str, Any], step: Step) -> None:
        """Deploy the pools and the ingress and wait until all answer.

        Raises:
            StartFailed: with the engine's own reason, or because the deadline passed.
        """
        import ray.serve as ray_serve

        from clusters.node_inventory import read_inventory
        from serve.application import IngressDeployment, application

        mesh = self._settings.mesh
        ray_serve.start(
            # Nodes of one machine share its port: one that is lost would take connections with it.
            proxy_location="HeadOnly" if self._session.nodes is not None else "EveryNode",
            http_options={"host": mesh.host, "port": mesh.port},
        )
        selectors = node_selectors(self._settings, read_inventory(node_catalogue(self._settings)))
        app = application(
            [
                pool_deployment(pool, self._settings, self._engine, selectors.pools[pool.key])
                for pool in self._settings.pools
            ],
            IngressDeployment(
                replicas=mesh.ingress_replicas,
                label_selector=selectors.ingress,
                most_requests=self._settings.ingress.most_requests,
            ),
            compose=door_builder(self._settings, selectors),
            ledger=ledger,
            group_key=group_key,
            namespace=self._session.namespace,
            operator_account=OPERATOR_ACCOUNT,
        )
        began = time.monotonic()
        ray_serve.run_many(
            [ray_serve.RunTarget(target=app, name=mesh.name, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        while not self._is_running():
            elapsed = time.monotonic() - began
            step.note(f"{elapsed:.0f} s, usually under a minute")
            if elapsed > self._settings.deadlines.engine_start_s:
                raise StartFailed(
                    f"the engine was not ready within {elapsed:.0f} s (deadlines.engine_start_s); "
                    f"it last said: {last_reason_in(self._session.logs) or 'nothing'}"
                )
            self._stop.wait(_POLL_S)
            self._give_up_if_asked()

    def _give_up_if_asked(self) -> None:
        if self._stop.is_set():
            raise StartFailed("stopped before it was ready")

    def _is_running(self) -> bool:
        import ray.serve as ray_serve

        status = ray_serve.status().applications[self._settings.mesh.name]
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            told = "\n".join([status.message, *(each.message for each in status.deployments.values())])
            reason = last_reason_in(self._session.logs) or last_reason(told.splitlines()) or told
            raise StartFailed(f"the engine could not start: {reason}\n(logs: {self._session.logs})")
        return status.status == "RUNNING"


def _group_key(record: GroupRecord) -> dict[str, Any]:
    return {
        "object": "joule-mesh.group-key",
        "key_id": record.key_id,
        "public_key": record.public_key.hex(),
        "signature_algo": "ed25519",
        "threshold": record.statement.threshold,
        "signers": len(record.statement.members),
    }


def _fast_path(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    if not settings.mesh.fast_path:
        return {}
    if environment.get("RAY_ADDRESS"):
        raise StartFailed("mesh.fast_path is how the mesh starts its own Ray; one that RAY_ADDRESS names runs already")
    deadlines = settings.deadlines
    return fast_path_environment(
        settings.mesh.data_dir,
        headers_within_s=deadlines.headers_s,
        client_within_s=max(deadlines.body_s, deadlines.slow_reader_s) + _INGRESS_FIRST_S,
    )


def meter_setup(settings: Settings, mesh_pids: tuple[int, ...]) -> HostMeterSetup:
    """The journal lies in the data folder; the socket too, unless its path is too long for one.

    ``mesh_pids`` are the roots of the mesh's own process trees on the meter's host.
    """
    folder = settings.mesh.data_dir / "meter"
    socket = folder / "steps.sock"
    if len(str(socket).encode()) > _SOCKET_PATH_BYTES:
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        socket = Path(tempfile.gettempdir()) / f"joule-mesh-{os.getuid()}-{digest}" / "steps.sock"
    return HostMeterSetup(
        journal=folder,
        socket=socket,
        calibration=settings.mesh.data_dir / "calibration",
        watts_per_thread=settings.meter.watts_per_thread,
        interval_ms=settings.meter.interval_ms,
        replay_file=settings.meter.replay_file,
        mesh_pids=mesh_pids,
    )


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as taken:
            raise StartFailed(
                f"port {port} on {host} is not free ({taken.strerror}); choose another with --port or JC_PORT"
            ) from taken


def door_builder(settings: Settings, selectors: NodeSelectors) -> "Callable[[Dispatch, HoldLedger], Composition]":
    """What travels to the ingress replicas and makes their door there: not the ledger's URL, which may be a secret."""
    return partial(build_door, settings.model_copy(update={"ledger": type(settings.ledger)()}), selectors)


def build_door(settings: Settings, selectors: NodeSelectors, dispatch: Dispatch, ledger: HoldLedger) -> "Composition":
    """The door of this mesh and what it plans with; called inside each ingress replica."""
    from serve.composition import Composition
    from serve.planner import Planner

    pools = {pool.key: known_pool(pool, settings) for pool in settings.pools}
    carbon, rates = start_carbon_feed(settings), rates_of(settings)
    health = PoolHealth(time.monotonic)
    planner = Planner(pools, carbon, rates, health, time.monotonic, ingresses=settings.mesh.ingress_replicas)
    door = Door(
        pools=pools,
        planner=planner,
        tiers=TierClassifier.load(),
        dispatch=dispatch,
        holds=Holds(ledger, lease_s=settings.ledger.hold_lease_s),
        carbon=carbon,
        price=Price(usd_per_kwh=settings.price.usd_per_kwh, version=settings.price.version),
        deadlines=deadlines_of(settings),
        health=health,
        attempts=settings.placement.attempts,
        random_bytes=secrets.token_bytes,
        wall_clock_ns=time.time_ns,
        clock=time.monotonic,
        pause=asyncio.sleep,
    )
    return Composition(
        door=door,
        limits=DoorLimits(
            most_requests=settings.ingress.most_requests,
            slow_reader_s=settings.deadlines.slow_reader_s,
            body_s=settings.deadlines.body_s,
        ),
        pins=RequestPins(account_pins(settings)),
        payments=start_payments(settings, os.environ),
        recharge_every_s=settings.payments.recharge_every_s,
        selectors=selectors.pools,
        nodes=node_catalogue(settings),
    )
