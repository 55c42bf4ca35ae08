"""One mesh for all tests that only ask it something: they run one after another, and it ends with the last of them."""

import contextlib
from collections.abc import Iterator, Sequence

import pytest
from running_echo import EchoMesh, built_in_settings, running_echo_mesh

_SHARED = "echo_mesh"
_ACCOUNTS = ("filled", "other", "acme-7f3a", "nosy", "mesh-operator", "fuzzed")
_RUNNING = pytest.StashKey[contextlib.ExitStack]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _shares(item))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A mesh that idles until the session ends would slow every other test down."""
    if _RUNNING in item.config.stash and (nextitem is None or not _shares(nextitem)):
        item.config.stash[_RUNNING].close()


def _shares(item: pytest.Item) -> bool:
    names: Sequence[str] = getattr(item, "fixturenames", ())
    return _SHARED in names


@pytest.fixture(scope="session")
def echo_mesh(request, tmp_path_factory) -> Iterator[EchoMesh]:
    """It is stopped after the last test that names it: no other fixture may hold it longer.

    What fails is tried twice: before a third time the mesh would wait four seconds, in every test of an error.
    """
    settings = built_in_settings()
    settings["placement"]["attempts"] = 2
    folder = tmp_path_factory.mktemp("echo")
    with contextlib.ExitStack() as running:
        request.config.stash[_RUNNING] = running
        yield running.enter_context(running_echo_mesh(folder, accounts=_ACCOUNTS, settings=settings))
