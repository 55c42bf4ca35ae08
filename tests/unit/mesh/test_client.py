import pytest

from mesh.client import MeshClient
from mesh.errors import MeshError, NotRunning


def test_without_a_key_the_sdk_is_not_made_so_that_it_sends_no_other_key():
    with pytest.raises(MeshError, match="JC_API_KEY"):
        MeshClient("http://127.0.0.1:1", None).openai()


def test_nobody_there_is_said_with_the_address():
    with pytest.raises(NotRunning, match=r"http://127\.0\.0\.1:1"):
        MeshClient("http://127.0.0.1:1", None).group_key()
