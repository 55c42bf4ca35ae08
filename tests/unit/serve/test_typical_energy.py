from serve.typical_energy import TypicalEnergy


def test_nothing_is_typical_before_anything_was_settled():
    typical = TypicalEnergy().of("small")
    assert (typical.microjoules_per_request, typical.microjoules_per_1000_output_tokens) == (None, None)


def test_the_first_request_is_typical_and_others_move_the_mean():
    energy = TypicalEnergy()
    energy.observe("small", 10, 2_000_000)
    assert energy.of("small").microjoules_per_request == 2_000_000
    assert energy.of("small").microjoules_per_1000_output_tokens == 200_000_000
    energy.observe("small", 30, 4_000_000)
    assert energy.of("small").microjoules_per_request == 3_000_000
    assert energy.of("other").microjoules_per_request is None


def test_what_is_not_known_teaches_nothing_and_an_embedding_no_output_tokens():
    energy = TypicalEnergy()
    energy.observe("small", 10, None)
    assert energy.of("small").microjoules_per_request is None
    energy.observe("embedder", 0, 5)
    typical = energy.of("embedder")
    assert (typical.microjoules_per_request, typical.microjoules_per_1000_output_tokens) == (5, None)
