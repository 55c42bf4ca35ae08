"""A signature is put into signed bytes without parsing them: always the bytes that parsing would give."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.canonical import canonical_bytes
from receipts.document import cut_signature, with_signature

# Texts that look like what is searched for, beside any others.
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.sampled_from(['"signature_algo":', "signature_algo", '"typ":', '\\"signature_algo":"', '{"signature":null,']),
    st.lists(st.sampled_from(['"', "\\", ":", ",", "signature_algo", "typ", "{", "}"]), min_size=1).map("".join),
)
SIGNATURES = st.none() | st.binary(min_size=64, max_size=64)


def paths_of_texts(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, str):
        return [path]
    if not isinstance(value, dict):
        return []
    return [each for name in value for each in paths_of_texts(value[name], (*path, name))]


@pytest.fixture(scope="session")
def documents(group) -> list[dict[str, Any]]:
    chain = group.chain(2)
    return [json.loads(chain[1]), json.loads(group.head(chain))]


@given(data=st.data(), signature=SIGNATURES)
def test_it_equals_what_parsing_gives(documents, data, signature) -> None:
    document = json.loads(json.dumps(data.draw(st.sampled_from(documents))))
    for path in paths_of_texts(document):
        if data.draw(st.booleans()):
            inner = document
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = data.draw(TEXTS)
    holder = document.get("verification", document)
    del holder["signature"]
    signed = canonical_bytes(document)
    holder["signature"] = None if signature is None else signature.hex()
    whole = with_signature(signed, signature)
    assert whole == canonical_bytes(document)
    if signature is not None:
        assert cut_signature(whole, signature.hex()) == signed
