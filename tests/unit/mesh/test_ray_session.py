import logging

from mesh.ray_session import log_trouble


def test_what_ray_says_is_a_line_in_the_log_and_nothing_on_standard_output(caplog, capsys):
    with caplog.at_level(logging.WARNING):
        log_trouble({"lines": ["Raylet is terminated.\n[state-dump] one\n[state-dump] two"], "pid": "raylet"}, False)
    assert [record.getMessage() for record in caplog.records] == ["Ray: Raylet is terminated."]
    assert capsys.readouterr().out == ""
