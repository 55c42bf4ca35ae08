"""LangChain's own suite for chat models, on `ChatOpenAI` with nothing but its ``base_url`` changed."""

from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from where import API_KEY, BASE_URL, MODEL

_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite fetches its images from the network; here every image is one pixel."""

    def pixel(url: str, **_: object) -> httpx.Response:
        return httpx.Response(200, content=_PIXEL, request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", pixel)


class TestChatOpenAI(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "auto", "base_url": BASE_URL, "api_key": API_KEY, "stream_usage": True}

    @property
    def model_override_value(self) -> str:
        return MODEL

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        model = ChatOpenAI(**self.chat_model_params, streaming=stream)
        return model.invoke("Say this again and again. " * 200)
