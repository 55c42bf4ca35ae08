"""The mesh's own OpenAPI document, and a few hundred cases that schemathesis makes from it.

`make schemathesis` makes ten thousand.
"""

import pytest
import requests
from openapi_cases import run_cases

_CASES = 400
_MODEL_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages")


@pytest.fixture
def document(echo_mesh) -> dict:
    response = requests.get(f"{echo_mesh.url}/openapi.json", timeout=30)
    response.raise_for_status()
    return response.json()


def test_the_document_needs_no_key_and_names_every_status_of_a_model_route(document):
    for path in _MODEL_ROUTES:
        operation = document["paths"][path]["post"]
        assert {"200", "400", "401", "402", "403", "404", "409", "413", "422", "429", "500", "502", "503", "504"} <= (
            operation["responses"].keys()
        )
        headers = operation["responses"]["200"]["headers"].keys()
        assert {"X-Energy-Joules", "X-Energy-Method", "X-Carbon-mg", "X-Routed-To", "X-Tier"} <= headers
        assert {"X-Receipt-Id", "X-Region"} <= headers


def test_every_operation_says_which_scope_it_needs_or_that_it_is_open(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["security"] == [] or operation["x-scope"], f"{method} {path}"


def test_cases_made_from_it_find_no_fault_and_no_undocumented_status(echo_mesh, tmp_path):
    ran = run_cases(
        echo_mesh.url, echo_mesh.account_keys["fuzzed"], cases=_CASES, phases="fuzzing", seed=1, folder=tmp_path
    )
    assert ran.passed, ran.said
    assert ran.cases >= _CASES / 2, "what has no parameters needs fewer"
