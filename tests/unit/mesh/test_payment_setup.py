"""Which payment provider the settings name, and what is said when its secrets aren't there."""

import importlib.resources
from pathlib import Path

import pytest
import yaml

from mesh.errors import BadSettings
from mesh.payment_setup import check_payments, start_payments
from mesh.settings import Settings, load_settings

SECRETS = {"STRIPE_SECRET_KEY": "sk_test_x", "STRIPE_WEBHOOK_SECRET": "whsec_x"}
PAGES = {"success_url": "https://example.com/thanks", "cancel_url": "https://example.com/cancel"}
STRIPE = {"provider": "stripe", "stripe": PAGES}


def settings(tmp_path: Path, payments: dict[str, object] | None = None) -> Settings:
    document = yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())
    del document["payments"]
    path = tmp_path / "mesh.yaml"
    path.write_text(yaml.safe_dump(document if payments is None else document | {"payments": payments}))
    return load_settings(path, port=None, data_dir=tmp_path)


def test_without_a_word_accounts_are_topped_up_by_transfer(tmp_path: Path) -> None:
    plain = settings(tmp_path)
    check_payments(plain, {})
    assert start_payments(plain, {}).name == "manual"


def test_stripe_takes_its_secrets_from_the_environment(tmp_path: Path) -> None:
    by_card = settings(tmp_path, STRIPE)
    check_payments(by_card, SECRETS)
    assert start_payments(by_card, SECRETS).name == "stripe"


@pytest.mark.parametrize("missing", SECRETS)
def test_a_secret_that_is_missing_is_named_before_anything_starts(tmp_path: Path, missing: str) -> None:
    environment = {**SECRETS, missing: ""}
    with pytest.raises(BadSettings, match=missing):
        check_payments(settings(tmp_path, STRIPE), environment)
    with pytest.raises(BadSettings, match=missing):
        start_payments(settings(tmp_path, STRIPE), environment)


def test_in_a_joined_cluster_the_secrets_are_on_other_nodes(tmp_path: Path) -> None:
    check_payments(settings(tmp_path, STRIPE), {"RAY_ADDRESS": "10.0.0.1:6379"})


@pytest.mark.parametrize(
    ("payments", "place"),
    [
        ({"provider": "stripe"}, "stripe names its success_url"),
        ({**STRIPE, "stripe": {**PAGES, "success_url": "example.com"}}, "payments.stripe.success_url"),
        ({**STRIPE, "stripe": {**PAGES, "secret_key": "sk_live_1"}}, "payments.stripe.secret_key"),
        ({"provider": "paypal"}, "payments.provider"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, payments: dict[str, object], place: str) -> None:
    with pytest.raises(BadSettings, match=place):
        settings(tmp_path, payments)
