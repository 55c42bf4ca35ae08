from mesh.engine_log import last_reason, last_reason_in

_VLLM = """\
(EngineCore pid=7) ERROR 11-21 09:40:07 [core.py:1071] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-21 09:40:07 [core.py:1071] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-21 09:40:07 [core.py:1071] ValueError: To serve at least one request, 9 GiB is needed.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_the_engines_own_reason_is_found_behind_the_parents_complaint():
    assert last_reason(_VLLM.splitlines()) == "ValueError: To serve at least one request, 9 GiB is needed."


def test_a_plain_traceback_counts():
    assert last_reason(["serve.errors.WeightsUnavailable: no config.json"]) == (
        "serve.errors.WeightsUnavailable: no config.json"
    )


def test_what_pydantic_says_on_the_next_lines_belongs_to_the_reason():
    told = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, max_model_len is too long. [type=value_error, input_value=ArgsKwargs(())]
    For further information visit a page
"""
    assert last_reason(told.splitlines()) == (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig "
        "Value error, max_model_len is too long."
    )


def test_ordinary_lines_are_no_reason():
    assert last_reason(["INFO all is well", "an Error: in the middle of prose"]) is None


def test_the_newest_log_with_a_reason_wins(tmp_path):
    (tmp_path / "worker-1.err").write_text(_VLLM)
    (tmp_path / "worker-2.err").write_text("nothing to say\n")
    assert last_reason_in(tmp_path) == "ValueError: To serve at least one request, 9 GiB is needed."
    assert last_reason_in(tmp_path / "empty") is None
