# ruff: noqa: RUF001 - punctuation of other scripts
"""Labelled prompts, source by source, and how templates become prompts; see README.md for where they come from."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "data" / "tiers" / "prompts.jsonl"
_SLOT = re.compile(r"\{([psPx])(?::([a-z]{2}))?\}")
_COPIES = 4
_MOST_PARAGRAPHS = 6
_FRAMES = (
    "{}",
    "Hello! {}",
    "{} Thanks!",
    "You are a helpful assistant.\n\n{}",
    "{}\n",
    "Please help: {}",
    "{} Keep it short.",
    "Question: {}",
    "hi, {}",
    "You are a friendly and knowledgeable assistant. Answer in the user's language.\n\n{}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A labelled prompt. ``group`` is the line or category it was made of, and goes into one fold with its likes."""

    source: str
    category: str
    group: str
    tier: str
    prompt: str
    weight: float


def read_examples() -> dict[str, list[Example]]:
    """Every source that is there, by name; the prompts under shared/ are missing in a checkout without it."""
    passages = json.loads((HERE / "passages.json").read_text(encoding="utf-8"))
    sources = {path.stem: list(_read_templates(path, passages)) for path in sorted(HERE.glob("*.tsv"))}
    if SHARED.exists():
        for example in _read_shared():
            sources.setdefault(example.source, []).append(example)
    return sources


def _read_shared() -> Iterator[Example]:
    for number, line in enumerate(SHARED.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        yield Example(
            source=row["source"],
            category=row["category"],
            group=f"{row['source']}:{number}",
            tier=row["tier"],
            prompt=row["prompt"],
            weight=1.0,
        )


def _read_templates(path: Path, passages: Mapping[str, Sequence[str]]) -> Iterator[Example]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        tier, language, text = line.split("\t")
        text = text.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
        copies = _COPIES if _SLOT.search(text) else 1
        for copy in range(copies):
            prompt = _fill(text, language, passages, number * 7 + copy * 3)
            yield Example(
                source=path.stem,
                category=language,
                group=f"{path.stem}:{number}",
                tier=tier,
                prompt=prompt,
                weight=1.0 / copies,
            )


def framed(examples: Sequence[Example]) -> Iterator[Example]:
    """Each example once more in a frame that changes nothing of its tier, at a quarter of its weight."""
    for number, example in enumerate(examples):
        frame = _FRAMES[number % len(_FRAMES)]
        prompt = frame.format(example.prompt) if frame != "{}" else example.prompt.rstrip("?.!").lower()
        yield Example(
            source=example.source,
            category=example.category,
            group=example.group,
            tier=example.tier,
            prompt=prompt,
            weight=example.weight / 4,
        )


def _fill(text: str, language: str, passages: Mapping[str, Sequence[str]], seed: int) -> str:
    """Put passages (p), several of them (P) and sentences (s, x: English) into the slots, by ``seed`` alone."""
    counter = itertools.count(seed)

    def pick(match: re.Match[str]) -> str:
        kind, wanted = match.groups()
        ours = passages["en" if kind == "x" else wanted or language]
        index = next(counter)
        if kind == "p":
            return ours[index % len(ours)]
        if kind == "P":
            return "\n\n".join(ours[(index + k) % len(ours)] for k in range(1 + (index * 5) % _MOST_PARAGRAPHS))
        sentences = [part for text in ours for part in re.split(r"(?<=[.!?。！？।])\s*", text) if len(part) > 1]
        return sentences[(index * 11) % len(sentences)]

    return _SLOT.sub(pick, text)
