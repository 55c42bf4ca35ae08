"""vLLM's command line, from a pool's settings."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from serve.engine_spec import VllmSpec
from serve.weights import HubWeights, LocalWeights

_SPEC = VllmSpec(
    model_name="small",
    task="generate",
    weights=LocalWeights(folder=Path("/weights")),
    cache_dir=Path("/cache"),
    context_tokens=512,
    arguments={"enforce-eager": True, "enable-chunked-prefill": False, "max-num-seqs": 8, "disable-log-stats": None},
    threads=None,
)


def test_arguments_are_written_as_vllm_reads_them():
    assert _SPEC.command_line("/weights") == [
        "--model=/weights",
        "--served-model-name=small",
        "--max-model-len=512",
        "--runner=generate",
        "--enable-prompt-tokens-details",
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--max-num-seqs=8",
        "--disable-log-stats",
    ]


def test_a_model_that_embeds_has_the_pooling_runner():
    line = replace(_SPEC, task="embed").command_line("/weights")
    assert "--runner=pooling" in line
    assert "--runner=generate" not in line


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_vllm_is_imported_in_the_engine_s_files_alone():
    root = Path(__file__).parents[3]
    rooms = ("mesh", "serve", "receipts", "placement", "metering", "clusters")
    files = [file for room in rooms for file in (root / room).rglob("*.py")]
    touching = {file for file in files if any(name.partition(".")[0] == "vllm" for name in _imports(file))}
    assert touching
    assert {file for file in touching if file.parent.name != "serve" or not file.stem.startswith("engine")} == set()


def test_a_hub_s_revision_is_named():
    spec = replace(_SPEC, weights=HubWeights(model_id="org/model", revision="abc"))
    assert "--revision=abc" in spec.command_line("org/model")
    assert spec.model_revision == "abc"
