"""LlamaIndex's client for servers of OpenAI's shapes, with nothing but its address changed."""

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from where import API_KEY, BASE_URL, MODEL

# As `running_echo` has it: of a shorter answer the machine's counter may see nothing.
METERED = " ".join(f"word{number}" for number in range(25))


class Album(BaseModel):
    name: str
    year: int


def multiply(first: int, second: int) -> int:
    """Multiply two whole numbers."""
    return first * second


@pytest.fixture
def llm() -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=API_KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        max_tokens=64,
        max_retries=0,
    )


@pytest.fixture
def completing() -> OpenAILike:
    return OpenAILike(
        model=MODEL, api_base=BASE_URL, api_key=API_KEY, is_chat_model=False, max_tokens=64, max_retries=0
    )


def _asked(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=text)]


def test_chat_answers_and_brings_its_energy(llm):
    answer = llm.chat(_asked(METERED))
    assert answer.message.content.split() == METERED.split()
    assert answer.raw.model_extra["energy"]["joules"] > 0
    assert answer.additional_kwargs["completion_tokens"] == len(METERED.split())


async def test_chat_answers_an_async_program(llm):
    answer = await llm.achat(_asked("three short words"))
    assert answer.message.content.split() == ["three", "short", "words"]


def test_chat_streams_its_words_one_by_one(llm):
    pieces = list(llm.stream_chat(_asked("three short words")))
    assert "".join(piece.delta or "" for piece in pieces).split() == ["three", "short", "words"]
    assert pieces[-1].message.content.split() == ["three", "short", "words"]
    assert len([piece for piece in pieces if piece.delta]) == 3


async def test_chat_streams_to_an_async_program(llm):
    pieces = [piece async for piece in await llm.astream_chat(_asked("three short words"))]
    assert pieces[-1].message.content.split() == ["three", "short", "words"]


def test_complete_through_the_chat_route(llm):
    assert llm.complete("three short words").text.split() == ["three", "short", "words"]


def test_complete_through_the_completions_route(completing):
    answer = completing.complete(METERED)
    assert answer.text.split() == METERED.split()
    assert answer.raw.model_extra["energy"]["joules"] > 0


def test_complete_streams(completing):
    pieces = list(completing.stream_complete("three short words"))
    assert pieces[-1].text.split() == ["three", "short", "words"]
    assert len([piece for piece in pieces if piece.delta]) == 3


def test_a_tool_is_called_with_arguments_of_its_schema(llm):
    tool = FunctionTool.from_defaults(multiply)
    answer = llm.chat_with_tools([tool], user_msg="multiply 7 by 7", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("multiply", {"first": 7, "second": 7})


def test_predict_and_call_runs_the_tool(llm):
    tool = FunctionTool.from_defaults(multiply)
    assert llm.predict_and_call([tool], user_msg="multiply 7 by 7").response == "49"


def test_a_tool_call_streams(llm):
    tool = FunctionTool.from_defaults(multiply)
    *_, last = llm.stream_chat_with_tools([tool], user_msg="multiply 7 by 7", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(last)
    assert call.tool_kwargs == {"first": 7, "second": 7}


def test_a_structured_answer_is_of_its_class(llm):
    album = llm.structured_predict(Album, PromptTemplate("An album of {year}."), year=1977)
    assert isinstance(album, Album)
    assert album.year == 1977
