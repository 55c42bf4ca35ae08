"""How money comes in, as the settings say: the provider that an ingress asks, and whether its secrets are there."""

from collections.abc import Mapping

from mesh.errors import BadSettings
from mesh.settings import Settings
from serve.payments.manual import ManualPayments
from serve.payments.protocol import PaymentProvider


def check_payments(settings: Settings, environment: Mapping[str, str]) -> None:
    """Look for the provider's secrets.

    In a joined cluster they are in the environment of the nodes that carry ingresses, which can't be seen from here.

    Raises:
        BadSettings: one is missing.
    """
    chosen = settings.payments
    if chosen.provider != "stripe" or chosen.stripe is None or environment.get("RAY_ADDRESS"):
        return
    for name in (chosen.stripe.secret_key_variable, chosen.stripe.webhook_secret_variable):
        _secret(environment, name)


def start_payments(settings: Settings, environment: Mapping[str, str]) -> PaymentProvider:
    """The provider that the settings name; called inside each ingress replica.

    Raises:
        BadSettings: its secrets aren't in the environment.
    """
    chosen = settings.payments
    if chosen.stripe is None or chosen.provider != "stripe":
        return ManualPayments(chosen.instructions)
    from serve.payments.stripe_payments import StripeAccount, StripePayments

    return StripePayments(
        StripeAccount(
            secret_key=_secret(environment, chosen.stripe.secret_key_variable),
            webhook_secret=_secret(environment, chosen.stripe.webhook_secret_variable),
            success_url=chosen.stripe.success_url,
            cancel_url=chosen.stripe.cancel_url,
            mesh=settings.mesh.name,
            api_url=chosen.stripe.url,
        )
    )


def _secret(environment: Mapping[str, str], name: str) -> str:
    found = environment.get(name)
    if not found:
        raise BadSettings(f"payments.provider is stripe: put its secret into the environment variable {name}")
    return found
