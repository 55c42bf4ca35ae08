from collections.abc import Iterator

import pytest
from running_echo import EchoMesh, running_echo_mesh


@pytest.fixture(scope="module")
def echo_mesh(tmp_path_factory) -> Iterator[EchoMesh]:
    with running_echo_mesh(tmp_path_factory.mktemp("echo")) as mesh:
        yield mesh
