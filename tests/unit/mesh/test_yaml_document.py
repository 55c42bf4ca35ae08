import pytest

from mesh.errors import BadSettings
from mesh.yaml_document import Fault, YamlDocument

_TEXT = """\
mesh:
  name: x
pools:
  - &one
    model: a
    replicas: {min: 0}
  - <<: *one
    model: b
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), None),
        (("mesh",), 1),
        (("mesh", "name"), 2),
        (("mesh", "missing"), 1),
        (("pools", 0), 4),
        (("pools", 0, "replicas", "ReplicaRange", "min"), 6),
        (("pools", 1, "model"), 8),
        (("pools", 1, "replicas", "max"), 7),
        (("pools", 9), 3),
        (("nothing", "here"), None),
    ],
)
def test_a_place_is_found_by_its_line_or_by_the_nearest_above(place, line):
    assert YamlDocument("f.yaml", _TEXT).line(place) == line


def test_it_says_what_the_file_says():
    value = YamlDocument("f.yaml", _TEXT).value
    assert value["pools"][1] == {"model": "b", "replicas": {"min": 0}}


def test_all_faults_are_told_in_the_order_of_their_lines():
    refusal = YamlDocument("f.yaml", _TEXT).refusal(
        [Fault(("pools", 1, "model"), "late"), Fault(("mesh", "name"), "early"), Fault((), "all of it")]
    )
    assert str(refusal) == (
        "f.yaml is not valid:\n  file: all of it\n  line 2, mesh.name: early\n  line 8, pools.1.model: late"
    )


def test_a_key_that_stands_twice_is_refused_with_its_line_wherever_it_is():
    with pytest.raises(BadSettings, match=r"f\.yaml is not valid:\n  line 3: a stands twice\n  line 6: c stands twice"):
        YamlDocument("f.yaml", "a: 1\nb: 2\na: 3\nd:\n  - {c: 1,\n     c: 2}\n")


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "\x00",
        "a: 2020-13-45",
        "a: !!python/object:os.system {}",
        "? {a: 1}\n: b",
        "a: !!bool x",
        "a: !!int ''",
        "a: !!timestamp x",
        "[" * 5000,
    ],
)
def test_what_is_not_yaml_is_refused_with_the_files_name(text):
    with pytest.raises(BadSettings, match=r"cannot read f\.yaml"):
        YamlDocument("f.yaml", text)


def test_a_file_that_refers_to_itself_ends():
    with pytest.raises(BadSettings, match="stands twice"):
        YamlDocument("f.yaml", "a: &x\n  b: *x\n  c: 1\n  c: 2\n")


def test_an_empty_file_has_no_lines():
    assert YamlDocument("f.yaml", "").line(("mesh",)) is None
