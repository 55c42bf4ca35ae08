"""Completions, messages, tools and embeddings by the real engines; the embeddings' one sleeps until it is asked."""

import json
import time

import anthropic
import openai
import pytest

pytestmark = pytest.mark.engine

_MODEL = "smollm2-135m-instruct"
_EMBEDDER = "all-minilm-l6-v2"
_ASKED = [{"role": "user", "content": "Name three rivers."}]
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
_AWAKE_WITHIN_S = 180


@pytest.fixture(scope="module")
def client(mesh):
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.key, max_retries=0, timeout=_AWAKE_WITHIN_S) as made:
        yield made


@pytest.fixture(scope="module")
def claude(mesh):
    with anthropic.Anthropic(base_url=mesh.url, api_key=mesh.key, max_retries=0) as made:
        yield made


def _receipt(mesh, receipt_id: str) -> dict:
    return json.loads(mesh.jc("receipt", receipt_id).stdout)


def _tokens(mesh, headers) -> tuple[int, int]:
    counted = _receipt(mesh, headers["x-receipt-id"])["workload"]["tokens"]
    return counted["input"], counted["output"]


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_a_completion_is_metered_as_it_counts_itself(mesh, client):
    raw = client.completions.with_raw_response.create(model=_MODEL, prompt="The river", max_tokens=8)
    answer = raw.parse()
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 8
    assert _tokens(mesh, raw.headers) == (answer.usage.prompt_tokens, 8)
    assert float(raw.headers["x-energy-joules"]) > 0


def test_prompts_of_a_list_are_all_on_the_receipt(mesh, client):
    prompts = ["The river", "A very old mountain of stone", "I"]
    raw = client.completions.with_raw_response.create(model=_MODEL, prompt=prompts, max_tokens=4, n=2)
    answer = raw.parse()
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert _tokens(mesh, raw.headers) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)


def test_a_completion_streams_and_its_last_chunk_has_the_joules(client):
    chunks = list(client.completions.create(model=_MODEL, prompt="The river", max_tokens=6, stream=True))
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert ["energy" in (chunk.model_extra or {}) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_a_message_is_answered_by_anthropic_s_sdk(mesh, claude):
    raw = claude.messages.with_raw_response.create(model=_MODEL, system="Be brief.", messages=_ASKED, max_tokens=8)
    answer = raw.parse()
    assert (answer.type, answer.role, answer.content[0].type) == ("message", "assistant", "text")
    assert answer.content[0].text
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 8
    assert _tokens(mesh, raw.headers)[1] == 8


def test_a_message_streams_as_anthropic_s_does(claude):
    with claude.messages.stream(model=_MODEL, messages=_ASKED, max_tokens=8) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert message.content[0].text
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 8)


def test_a_tool_that_must_be_called_is(client, claude):
    function = {"name": "get_weather", "description": "the weather in a city", "parameters": _CITY}
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(
        model=_MODEL,
        messages=_ASKED,
        max_tokens=64,
        tools=[{"type": "function", "function": function}],
        tool_choice=choice,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert list(json.loads(call.function.arguments)) == ["city"]
    message = claude.messages.create(
        model=_MODEL,
        messages=_ASKED,
        max_tokens=64,
        tools=[{"name": "get_weather", "input_schema": _CITY}],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    assert (message.stop_reason, message.content[-1].name) == ("tool_use", "get_weather")
    assert list(message.content[-1].input) == ["city"]


@pytest.fixture(scope="module")
def woken(client) -> None:
    """The first embedding wakes its pool; while that takes longer than a request may wait, it is told to come again."""
    give_up = time.monotonic() + _AWAKE_WITHIN_S
    while True:
        try:
            client.embeddings.create(model=_EMBEDDER, input="wake up")
        except (openai.InternalServerError, openai.APITimeoutError):
            assert time.monotonic() < give_up, "the embeddings' pool did not wake"
            time.sleep(1)
        else:
            return


@pytest.mark.usefixtures("woken")
def test_embeddings_know_what_is_alike(mesh, client):
    """Among texts that keep a thread busy for so long that a counter with ticks of 10 ms sees it."""
    sentences = ("A cat sat on the mat.", "A kitten was sitting on a rug.", "Stock markets fell.")
    raw = client.embeddings.with_raw_response.create(
        model=_EMBEDDER, input=[*sentences, *["Enough to keep a thread busy that long." * 8] * 16]
    )
    answer = raw.parse()
    cat, kitten, stocks = (each.embedding for each in answer.data[: len(sentences)])
    assert len(cat) == 384
    assert _dot(cat, cat) == pytest.approx(1, abs=1e-4)
    assert _dot(cat, kitten) > _dot(cat, stocks) + 0.2
    assert _tokens(mesh, raw.headers) == (answer.usage.prompt_tokens, 0)
    assert float(raw.headers["x-energy-joules"]) > 0
    assert raw.headers["x-tier"] == "L0"


@pytest.mark.usefixtures("woken")
def test_auto_finds_the_model_that_embeds_and_base64_says_the_same(client):
    """The SDK asks for base64 unless it is told otherwise."""
    packed = client.embeddings.create(model="auto", input="the river")
    floats = client.embeddings.create(model="auto", input="the river", encoding_format="float")
    assert packed.model == floats.model == _EMBEDDER
    assert packed.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)


@pytest.mark.usefixtures("woken")
def test_a_model_is_not_asked_for_what_it_cannot_do(client):
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=_EMBEDDER, messages=_ASKED, max_tokens=4)
    assert refused.value.status_code < 500
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model=_MODEL, input="x")
    assert refused.value.status_code < 500
