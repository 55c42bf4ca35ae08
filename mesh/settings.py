"""`mesh.yaml`: parsed strictly, every fault named with its place."""

import importlib.resources
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from clusters.grid import YearlyMeansFeed
from clusters.sites import Site
from mesh.contradictions import Entries, contradictions
from mesh.errors import BadSettings
from mesh.yaml_document import Fault, YamlDocument
from placement.tiers import Tier
from receipts.holds import MOST_UNSIGNED
from receipts.members import AccountName
from receipts.placement_section import MOST_PIN_ENTRIES
from serve.engine_spec import ModelTask
from serve.holds import LEASE_S

_LEDGERS = ("postgresql://", "postgresql+psycopg://", "sqlite:////")
_Item = TypeVar("_Item", bound=BaseModel)
Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
WebAddress = Annotated[str, Field(pattern=r"^https?://")]
# What Ray takes as a label's value.
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")]


class _Strict(BaseModel):
    # A value that is wrong may be a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class MeshSettings(_Strict):
    """Where this mesh listens and keeps its data; two meshes on one machine differ in port and data folder.

    Its ``ingress_replicas`` are each on a node of their own. ``fast_path`` puts HAProxy in place of Ray's own proxy, in
    a cluster that the mesh starts itself.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    host: str
    port: Port
    data_dir: Path
    cache_dir: Path
    ingress_replicas: Annotated[int, Field(ge=1)] = 1
    fast_path: bool = False


class IngressSettings(_Strict):
    """With ``most_requests`` under way in one ingress, others are refused (503)."""

    most_requests: Annotated[int, Field(ge=1)] = 1000


class LedgerSettings(_Strict):
    """Where the ledger is kept: null is an SQLite file in the data folder, else SQLAlchemy's URL of a database.

    With ``most_unsigned`` receipts waiting for their signatures, new requests are refused (503). ``hold_lease_s``:
    how long what is held for a request outlives an ingress that died; a ledger may be away for two thirds of it.
    """

    url: SecretStr | None = None
    most_unsigned: Annotated[int, Field(ge=1)] = MOST_UNSIGNED
    hold_lease_s: Annotated[float, Field(ge=1, le=LEASE_S)] = LEASE_S

    @field_validator("url")
    @classmethod
    def _known_database(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(_LEDGERS):
            raise ValueError(
                "neither null nor like postgresql://USER@HOST/DATABASE or sqlite:////FOLDER/ledger.sqlite3"
            )
        return url


class PriceSettings(_Strict):
    """USD per kWh at the silicon, markup included, and the name of this price on receipts."""

    usd_per_kwh: Annotated[float, Field(ge=0)]
    version: str


class StripeSettings(_Strict):
    """Top-ups by Stripe: environment variables that hold its secrets, and where a customer goes on after paying.

    Its webhook to `/v1/webhooks/stripe` sends ``payment_intent.succeeded`` and ``refund.failed``. Meshes that share an
    account at Stripe need different names: by that they tell their payments apart.
    """

    secret_key_variable: str = "STRIPE_SECRET_KEY"  # noqa: S105 - the variable's name
    webhook_secret_variable: str = "STRIPE_WEBHOOK_SECRET"  # noqa: S105 - the variable's name
    success_url: WebAddress
    cancel_url: WebAddress
    url: WebAddress = "https://api.stripe.com"


class PaymentSettings(_Strict):
    """How accounts top up: by transfer, which the operator enters, or by Stripe. ``instructions`` says where to pay."""

    provider: Literal["manual", "stripe"] = "manual"
    instructions: Annotated[str, Field(max_length=1000)] = "Ask the operator of this mesh where to transfer the amount."
    stripe: StripeSettings | None = None
    recharge_every_s: Positive = 30

    @model_validator(mode="after")
    def _stripe_is_described(self) -> Self:
        if self.provider == "stripe" and self.stripe is None:
            raise ValueError("with provider stripe, stripe names its success_url and cancel_url")
        return self


class PlacementSettings(_Strict):
    """What the ranking weighs: the exchange rates of a preference, or own ones in their place; tries per request."""

    prefer: Literal["cheapest", "cleanest", "balanced"] = "balanced"
    usd_per_kgco2: Rate | None = None
    usd_per_hour_waited: Rate | None = None
    attempts: Annotated[int, Field(ge=1, le=16)] = 3


class CarbonSettings(_Strict):
    """Where the grids' carbon intensities come from.

    ``hourly`` names a CSV file for each grid zone; ``api_key_variable`` the environment variable with the key of the
    service at ``url``, which ``source: electricity-maps`` asks.
    """

    source: Literal["yearly", "hourly", "electricity-maps"] = "yearly"
    hourly: dict[str, Path] = {}
    url: WebAddress = "https://api.electricitymaps.com/v3"
    api_key_variable: str = "ELECTRICITY_MAPS_API_KEY"
    refresh_s: Positive = 300

    @model_validator(mode="after")
    def _hourly_has_files(self) -> Self:
        if (self.source == "hourly") != bool(self.hourly):
            raise ValueError("hourly names a file for each zone exactly when source is hourly")
        return self


class SiliconSettings(_Strict):
    """A kind of silicon that pools and node labels name.

    ``detected_as`` is a pattern (``*`` and ``?``) of what a meter must detect there. Silicon that is only a label is
    ``simulated``: nothing is compared, and its receipts say so.
    """

    kind: Label
    detected_as: str
    simulated: bool = False


class AccountSettings(_Strict):
    """Where an account's requests may run: only with ``operators``, null is any; only where ``residency`` allows."""

    name: AccountName
    operators: Annotated[frozenset[Label], Field(min_length=1, max_length=MOST_PIN_ENTRIES)] | None = None
    residency: Annotated[tuple[Label, ...], Field(max_length=MOST_PIN_ENTRIES)] = ()


class SiteSettings(_Strict):
    """One operator in one region; null is "not published".

    ``usd_per_kwh`` is this site's price in place of the mesh's; ``network_ms`` is how far it is from the ingress.
    """

    operator: Label
    legal_entity: str | None
    region: Label
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None
    grid_zone: str
    dc_pue: Annotated[float, Field(ge=1)]
    dc_ref_renewable_share: Annotated[float, Field(ge=0, le=1)] | None
    usd_per_kwh: Rate | None = None
    network_ms: Annotated[float, Field(ge=0)] = 0

    @property
    def key(self) -> str:
        """How a pool names this site."""
        return f"{self.operator}/{self.region}"

    def site(self) -> Site:
        """The site as a domain value."""
        return Site(**self.model_dump(exclude={"usd_per_kwh", "network_ms"}))


class WeightsSettings(_Strict):
    """Exactly one of package + file (GGUF), package + folder, hub (+ revision), or path."""

    package: str | None = None
    file: str | None = None
    folder: str | None = None
    hub: str | None = None
    revision: str | None = None
    path: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("package", "hub", "path") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("name the weights by exactly one of package, hub or path")
        inside = [name for name in ("file", "folder") if getattr(self, name) is not None]
        if len(inside) != (self.package is not None):
            raise ValueError("package goes together with either file or folder")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        return self


class ModelSettings(_Strict):
    """A model, its weights, what it does (``task``), and what it is declared to be capable of."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    task: ModelTask = "generate"
    weights: WeightsSettings
    context_tokens: Annotated[int, Field(ge=16)]
    capable_up_to: Tier
    capability_rests_on: str
    features: frozenset[str]
    prior_joules_per_token: Positive
    engine_arguments: dict[str, str | int | float | bool | None]
    environment: dict[str, str]


class ReplicaRange(_Strict):
    """How many replicas a pool has as its load asks; with ``min`` 0 it sleeps after ``idle_s`` without a request."""

    min: Annotated[int, Field(ge=0)]
    max: Annotated[int, Field(ge=1)]
    idle_s: Positive = 300

    @model_validator(mode="after")
    def _least_first(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is more than max")
        return self


class PoolSettings(_Strict):
    """One model on one kind of a site's silicon; null where the site has only one.

    ``wake_s`` is how long a replica's start takes, until it is learned; ``prior_joules_per_token`` stands in for the
    model's.
    """

    model: str
    site: str
    silicon: str | None = None
    replicas: Annotated[int, Field(ge=1)] | ReplicaRange
    wake_s: Positive = 60
    prior_joules_per_token: Positive | None = None
    cpus_per_replica: Annotated[float, Field(ge=0)]
    threads_per_replica: Annotated[int, Field(ge=1)] | None
    gpus_per_replica: Annotated[int, Field(ge=0)] | None
    max_ongoing_requests: Annotated[int, Field(ge=1)]

    @property
    def key(self) -> str:
        """The pool's name in plans, receipts and Serve: ``model@operator/region``, and ``/silicon`` if it names one."""
        return "/".join(filter(None, (f"{self.model}@{self.site}", self.silicon)))


class MeterSettings(_Strict):
    """How the host meters measure.

    ``watts_per_thread``: null takes the silicon catalogue's published figure. ``interval_ms``: how often intervals
    close; a slower counter's at its own period. ``replay_file``: a recording to play back in place of counters.
    """

    watts_per_thread: Positive | None
    interval_ms: Annotated[int, Field(ge=10, le=10_000)] = 100
    replay_file: Path | None = None


class DeadlineSettings(_Strict):
    """How long each part may take before the mesh gives up on it, in seconds.

    ``headers_s`` is for a request's headers on the fast path, ``body_s`` for all of its body,
    ``slow_reader_s`` for a client to read on.
    """

    engine_start_s: Positive
    first_token_s: Positive
    between_tokens_s: Positive
    slow_reader_s: Positive = 60
    body_s: Positive = 60
    headers_s: Positive = 10
    stop_s: Positive


class Settings(_Strict):
    """The whole of mesh.yaml."""

    mesh: MeshSettings
    ingress: IngressSettings = IngressSettings()
    ledger: LedgerSettings = LedgerSettings()
    price: PriceSettings
    payments: PaymentSettings = PaymentSettings()
    placement: PlacementSettings
    carbon: CarbonSettings = CarbonSettings()
    silicon: tuple[SiliconSettings, ...] = ()
    sites: Annotated[tuple[SiteSettings, ...], Field(min_length=1)]
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    pools: Annotated[tuple[PoolSettings, ...], Field(min_length=1)]
    accounts: tuple[AccountSettings, ...] = ()
    meter: MeterSettings
    deadlines: DeadlineSettings

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        faults = contradictions(
            Entries(
                sites=self.sites,
                silicon=self.silicon,
                models=self.models,
                pools=self.pools,
                accounts=self.accounts,
                hourly_zones=tuple(self.carbon.hourly),
            ),
            YearlyMeansFeed(),
        )
        if faults:
            raise ValueError("; ".join(f"{'.'.join(map(str, fault.place))}: {fault.message}" for fault in faults))
        return self

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy's URL of the ledger; a secret, for it may hold a password."""
        if self.ledger.url is not None:
            return self.ledger.url.get_secret_value()
        return f"sqlite:///{self.mesh.data_dir / 'ledger.sqlite3'}"

    def site(self, key: str) -> SiteSettings:
        """The site that a pool names."""
        return next(site for site in self.sites if site.key == key)

    def model(self, name: str) -> ModelSettings:
        """The model that a pool names."""
        return next(model for model in self.models if model.name == name)


def load_settings(path: Path | None, *, port: int | None, data_dir: Path | None) -> Settings:
    """Read ``path``, or ``mesh.yaml`` in the current folder, or the built-in `clusters/local.yaml`.

    ``port`` and ``data_dir`` override the file.

    Raises:
        BadSettings: names the file and every faulty place.
    """
    if path is None and Path("mesh.yaml").is_file():
        path = Path("mesh.yaml")
    name = "the built-in settings" if path is None else str(path)
    try:
        text = path.read_text() if path else importlib.resources.files("clusters").joinpath("local.yaml").read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise BadSettings(f"cannot read {name}: {unreadable}") from unreadable
    document = YamlDocument(name, text)
    try:
        settings = Settings.model_validate(document.value)
    except ValidationError as wrong:
        raise document.refusal(_faults(wrong, document.value)) from wrong
    mesh = {
        "port": port if port is not None else settings.mesh.port,
        "data_dir": (data_dir or settings.mesh.data_dir).expanduser().absolute(),
        "cache_dir": settings.mesh.cache_dir.expanduser().absolute(),
    }
    # The ingress reads them, in another folder.
    beside = path.parent.absolute() if path else Path.cwd()
    hourly = {zone: beside / file.expanduser() for zone, file in settings.carbon.hourly.items()}
    return settings.model_copy(
        update={
            "mesh": settings.mesh.model_copy(update=mesh),
            "carbon": settings.carbon.model_copy(update={"hourly": hourly}),
        }
    )


def _faults(wrong: ValidationError, document: object) -> list[Fault]:
    """Every fault with its place, also where entries contradict each other beside some that are malformed."""
    faults = [Fault(fault["loc"], fault["msg"]) for fault in wrong.errors() if fault["loc"]]
    whole = [Fault((), fault["msg"]) for fault in wrong.errors() if not fault["loc"]]
    entries = Entries(
        sites=_entries(document, "sites", SiteSettings),
        silicon=_entries(document, "silicon", SiliconSettings),
        models=_entries(document, "models", ModelSettings),
        pools=_entries(document, "pools", PoolSettings),
        accounts=_entries(document, "accounts", AccountSettings),
        hourly_zones=_hourly_zones(document),
    )
    faults += contradictions(entries, YearlyMeansFeed())
    return faults or whole


def _hourly_zones(document: object) -> tuple[str, ...]:
    carbon = _entry(document.get("carbon"), CarbonSettings) if isinstance(document, dict) else None
    return () if carbon is None else tuple(carbon.hourly)


def _entries(document: object, part: str, kind: type[_Item]) -> list[_Item | None]:
    if not isinstance(document, dict):
        return [None]
    found = document.get(part, [] if not Settings.model_fields[part].is_required() else None)
    return [_entry(each, kind) for each in found] if isinstance(found, list) else [None]


def _entry(value: object, kind: type[_Item]) -> _Item | None:
    try:
        return kind.model_validate(value)
    except ValidationError:
        return None
