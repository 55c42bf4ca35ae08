"""The real thing: a mesh started by `jc up --detach`, used as its users do."""

import concurrent.futures
import contextlib
import json
import sqlite3
import time
from pathlib import Path

import openai
import psutil
import pytest
import requests

pytestmark = pytest.mark.engine

_MESSAGES = [{"role": "user", "content": "Name three rivers."}]


@pytest.fixture(scope="module")
def client(mesh):
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.key, max_retries=0) as made:
        yield made


def _receipt(mesh, receipt_id: str, **environment: str) -> dict:
    return json.loads(mesh.jc("receipt", receipt_id, **environment).stdout)


def test_the_start_shows_answer_joules_place_receipt_and_verification(mesh):
    for words in ("It said", "Energy", "It ran on", "Receipt", "rcpt_", "Signature", "verified", "API key"):
        assert words in mesh.printed
    assert "Traceback" not in mesh.printed


def test_a_unary_answer_carries_its_joules_in_header_body_and_receipt(mesh, client):
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=_MESSAGES, max_tokens=16)
    answer = raw.parse()
    energy = answer.model_extra["energy"]
    receipt = _receipt(mesh, raw.headers["x-receipt-id"])
    assert float(raw.headers["x-energy-joules"]) == energy["joules"] == receipt["energy"]["total_joules"] > 0
    assert raw.headers["x-energy-method"] == receipt["energy"]["method"]
    assert raw.headers["x-routed-to"] == f"self-hosted/local/{receipt['silicon']['model']}"
    assert float(raw.headers["x-carbon-mg"]) > 0
    assert receipt["workload"]["id"] == answer.id
    assert receipt["workload"]["tokens"]["input"] == answer.usage.prompt_tokens
    assert receipt["workload"]["tokens"]["output"] == answer.usage.completion_tokens == 16


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_carries_its_joules_on_its_last_chunk(mesh, client, include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    stream = client.chat.completions.create(model="auto", messages=_MESSAGES, max_tokens=12, stream=True, **options)
    chunks = list(stream)
    carrying = [chunk for chunk in chunks if "energy" in (chunk.model_extra or {})]
    assert carrying == [chunks[-1]]
    if include_usage:
        assert chunks[-1].usage.completion_tokens == 12
        assert chunks[-1].choices == []
    else:
        assert chunks[-1].choices[0].finish_reason == "length"
        assert all(chunk.usage is None for chunk in chunks)
    energy = carrying[0].model_extra["energy"]
    assert _receipt(mesh, energy["receipt_id"])["energy"]["total_joules"] == energy["joules"] > 0


def test_concurrent_requests_share_the_energy_and_never_multiply_it(client):
    def ask(count: int) -> float:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            futures = [
                pool.submit(client.chat.completions.create, model="auto", messages=_MESSAGES, max_tokens=24)
                for _ in range(count)
            ]
            return sum(future.result().model_extra["energy"]["joules"] for future in futures)

    alone = sum(ask(1) for _ in range(8))
    together = ask(8)
    # Start-and-end snapshots would bill about eight times the energy here.
    assert 0 < together <= 1.05 * alone


def test_receipts_verify_offline_and_a_changed_byte_does_not(mesh, client, tmp_path):
    answer = client.chat.completions.create(model="auto", messages=_MESSAGES, max_tokens=4)
    receipt, key = tmp_path / "receipt.json", tmp_path / "signer_pubkey.hex"
    receipt.write_text(mesh.jc("receipt", answer.model_extra["energy"]["receipt_id"]).stdout)
    assert mesh.jc("key", "-o", str(key)).returncode == 0
    verified = mesh.jc("verify", "--key", str(key), str(receipt))
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "Verified: 1 passed, 0 failed")
    receipt.write_text(receipt.read_text().replace('"kind":"ml-inference"', '"kind":"ml-inferenca"'))
    failed = mesh.jc("verify", "--key", str(key), str(receipt))
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1] == "Verified: 0 passed, 1 failed"
    assert len(failed.stdout.splitlines()) == 2


def test_a_client_that_leaves_is_billed_for_what_ran_and_its_receipt_resolves(mesh, client):
    with client.chat.completions.with_streaming_response.create(
        model="auto", messages=_MESSAGES, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    ) as response:
        receipt_id = response.headers["x-receipt-id"]
        next(response.iter_lines())
    give_up = time.monotonic() + 30
    while (found := mesh.jc("receipt", receipt_id)).returncode and time.monotonic() < give_up:
        time.sleep(0.5)
    receipt = json.loads(found.stdout)
    assert 0 < receipt["workload"]["tokens"]["output"] < 1000
    assert receipt["energy"]["total_joules"] > 0


def test_a_client_that_leaves_before_a_unary_answer_is_billed_too(mesh):
    body = {"model": "auto", "messages": _MESSAGES, "max_tokens": 1500, "ignore_eos": True}
    before = _newest_receipt(mesh)["chain"]["seq"]
    headers = {"Authorization": f"Bearer {mesh.key}"}
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{mesh.url}/v1/chat/completions", json=body, headers=headers, timeout=2)
    give_up = time.monotonic() + 30
    while (newest := _newest_receipt(mesh))["chain"]["seq"] == before and time.monotonic() < give_up:
        time.sleep(0.5)
    assert newest["chain"]["seq"] == before + 1
    assert 0 < newest["workload"]["tokens"]["output"] < 1000
    assert newest["energy"]["total_joules"] > 0


def _newest_receipt(mesh) -> dict:
    """From the ledger's file: nobody was told this receipt's id."""
    with contextlib.closing(sqlite3.connect(f"file:{mesh.data_dir}/ledger.sqlite3?mode=ro", uri=True)) as ledger:
        query = "SELECT signed_bytes FROM receipts WHERE account = 'default' ORDER BY seq DESC LIMIT 1"
        return json.loads(ledger.execute(query).fetchone()[0])


def test_a_wrong_field_is_refused_in_the_envelope_by_the_door_or_by_the_engine(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="auto", messages=_MESSAGES, max_tokens=8, extra_body={"min_tokens": 9})
    assert refused.value.body["code"] == "bad_request"
    with pytest.raises(openai.UnprocessableEntityError, match="has a context of 2048 tokens") as refused:
        client.chat.completions.create(model="auto", messages=_MESSAGES, max_tokens=10**6)
    assert refused.value.body["code"] == "unprocessable_entity"
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(model="auto", messages=[{"role": "user", "content": [{"type": "nope"}]}])
    assert refused.value.body["code"] == "unprocessable_entity"


def test_models_and_chat_from_the_terminal(mesh):
    assert mesh.jc("models").stdout.split() == ["auto", "all-minilm-l6-v2", "smollm2-135m-instruct"]
    said = mesh.jc("chat", "Say hello.", "--max-tokens", "8")
    assert said.returncode == 0
    assert said.stdout.strip()
    assert " J (" in said.stderr


def test_a_new_key_works_and_a_wrong_one_is_told_what_to_do(mesh):
    key = mesh.jc("keys", "new", "--name", "test").stdout.strip()
    assert key.startswith("jc_LIVE_")
    assert mesh.jc("models", JC_API_KEY=key).returncode == 0
    wrong = mesh.jc("models", JC_API_KEY="jc_LIVE_wrong")
    assert wrong.returncode == 2
    assert "API key" in wrong.stderr


@pytest.fixture(scope="module")
def other(mesh) -> str:
    """A key of another account's."""
    return mesh.jc("keys", "new", "--account", "other").stdout.strip()


def test_no_account_finds_in_the_cache_what_another_one_asked(mesh, other):
    prompt = " ".join(f"{number} bottles of beer on the wall." for number in range(100))

    def cached(key: str) -> int:
        answer = requests.post(
            f"{mesh.url}/v1/completions",
            json={"model": "auto", "prompt": prompt, "max_tokens": 1},
            headers={"Authorization": f"Bearer {key}"},
            timeout=120,
        )
        receipt = _receipt(mesh, answer.headers["X-Receipt-Id"], JC_API_KEY=key)
        return receipt["workload"]["tokens"]["cached"]

    assert cached(mesh.key) == 0
    assert cached(mesh.key) > 0
    assert cached(other) == 0
    assert cached(other) > 0


def test_another_account_does_not_see_the_receipt(mesh, client, other):
    answer = client.chat.completions.create(model="auto", messages=_MESSAGES, max_tokens=1)
    unseen = mesh.jc("receipt", answer.model_extra["energy"]["receipt_id"], JC_API_KEY=other)
    assert unseen.returncode == 2
    assert "no receipt" in unseen.stderr


def test_a_second_mesh_on_the_same_port_or_folder_is_refused_by_name(mesh, tmp_path):
    port = mesh.url.rpartition(":")[2]
    same_port = mesh.jc("up", JC_DATA_DIR=str(tmp_path), JC_PORT=port)
    assert same_port.returncode == 2
    assert f"port {port}" in same_port.stderr
    same_folder = mesh.jc("up")
    assert same_folder.returncode == 2
    assert mesh.url in same_folder.stderr


def test_nothing_listens_beyond_loopback(mesh):
    """Every socket of the mesh's processes: the driver, Ray's, Serve's and the engine's."""
    driver = psutil.Process(mesh.state["pid"])
    family = {driver.pid, *(each.pid for each in driver.children(recursive=True))}
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    ours = [each for each in listening if each.pid in family]
    assert len(ours) > 10
    for each in ours:
        assert each.laddr.ip in {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, each


def _bodies(canary: str) -> dict[str, dict]:
    said = [{"role": "user", "content": canary}]
    limited = {"model": "auto", "max_tokens": 4}
    return {
        "chat/completions": {**limited, "messages": said},
        "completions": {**limited, "prompt": canary},
        "messages": {**limited, "system": canary, "messages": said},
        "embeddings": {"model": "auto", "input": canary},
    }


@pytest.mark.parametrize("path", ["chat/completions", "completions", "messages", "embeddings"])
def test_prompts_and_answers_rest_nowhere(mesh, path):
    """`tests/faults/test_privacy.py` has every way there is; this is the real engine's part, which quotes what it
    refuses.
    """
    canary = f"canary-7f3a9c-{path.replace('/', '-')}"
    body = _bodies(canary)[path]
    wrong = [{"temperature": canary}, {"stop": [canary] * 99}, {"dimensions": canary}, {"tools": [{"type": canary}]}]
    sent = [body, *({**body, **each} for each in wrong)]
    sent += [{**body, "stream": True}] if path != "embeddings" else []
    headers = {"Authorization": f"Bearer {mesh.key}"}
    statuses = [
        requests.post(f"{mesh.url}/v1/{path}", json=each, headers=headers, timeout=180).status_code for each in sent
    ]
    assert any(status in (400, 422) for status in statuses)
    for folder in (mesh.data_dir, Path(mesh.state["logs"]).resolve()):
        for file in folder.rglob("*"):
            if file.is_file():
                assert canary.encode() not in file.read_bytes(), file
