"""A request with several prompts, which its engine comes to one after another."""

import pytest

from metering.engine_steps import RequestWork


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path)
    yield simulated
    simulated.close()


def _prompts(request: str, *, together: int, computed: int, cached: int = 0) -> RequestWork:
    return RequestWork(request, together, computed, cached, 0, computed + cached)


def _settled(lab, host, *steps):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    for works in steps:
        host.engines["cpu-a"].begin(*(work(request) for work in works))
        host.run(50)
        host.meter.tick()
    host.engines["cpu-a"].end()
    return host.meter.settle(request, "finished")


def test_all_its_prompts_are_input_whichever_step_they_are_in(lab, host):
    settled = _settled(
        lab,
        host,
        [lambda r: _prompts(r, together=10, computed=10), lambda r: _prompts(r, together=30, computed=15, cached=5)],
        [lambda r: _prompts(r, together=37, computed=7)],
    )
    assert (settled.tokens.input, settled.tokens.cached) == (37, 5)


def test_a_prompt_that_is_computed_again_counts_once(lab, host):
    """After a preemption, and in each of its choices."""
    settled = _settled(
        lab,
        host,
        [lambda r: _prompts(r, together=20, computed=20)],
        [lab.decode],
        [lambda r: _prompts(r, together=20, computed=4, cached=16)],
    )
    assert (settled.tokens.input, settled.tokens.cached) == (20, 0)


def test_an_embedding_is_settled_with_prompts_and_no_tokens_of_an_answer(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.prefill(request, tokens=12))
    host.run(20)
    host.engines["cpu-a"].working.clear()  # the step produces nothing
    host.engines["cpu-a"].end()
    host.meter.tick()
    settled = host.meter.settle(request, "finished")
    assert (settled.tokens.input, settled.tokens.output) == (12, 0)
    assert settled.energy.total_microjoules > 0
