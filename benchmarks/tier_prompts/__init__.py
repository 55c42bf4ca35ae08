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
_BACKGROUND = HERE / "no_task.tsv"
_SLOT = re.compile(r"\{([psPx])(?::([a-z]+))?\}")
_MATERIAL = re.compile(r"\{\+(.+)\}$")
_COPIES = 4
_MOST_PARAGRAPHS = 6
# How an instruction and the material that it is about are put together: ours, after what clients commonly send.
_LAYOUTS = (
    "{i}\n\n{p}",
    "{p}\n\n{i}",
    "{i}\n\nText: {p}",
    '{i}\n\n"""\n{p}\n"""',
    "### Instruction:\n{i}\n\n### Input:\n{p}\n\n### Response:",
    "{j}:\n{p}",
    "<text>\n{p}\n</text>\n\n{i}",
    "{i}\nInput: {p}\nOutput:",
    "{p}\n{i}",
    "{i}\n---\n{p}\n---",
    "Can you help me with this? {i}\n\n{p}",
    "Text: {p}\n\n{i}\n\nAnswer:",
    '"{p}"\n\n{i}',
)
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
    """A labelled prompt. ``group`` is the line or category it was made of, and goes into one fold with its likes.

    ``task`` is the prompt without the material that was filled in: only its words tell anything of the tier.
    """

    source: str
    category: str
    group: str
    tier: str
    prompt: str
    task: str
    weight: float


def read_background() -> list[Example]:
    """Material under words that name no cheap task: part of every fit and judged nowhere.

    Without it length alone would pass for a summary.
    """
    return list(_read_templates(_BACKGROUND, _read_passages()))


def _read_passages() -> Mapping[str, Sequence[str]]:
    passages: dict[str, list[str]] = json.loads((HERE / "passages.json").read_text(encoding="utf-8"))
    return passages


def read_examples() -> dict[str, list[Example]]:
    """Every source that is there, by name; the prompts under shared/ are missing in a checkout without it."""
    passages = _read_passages()
    paths = [path for path in sorted(HERE.glob("*.tsv")) if path != _BACKGROUND]
    sources = {path.stem: list(_read_templates(path, passages)) for path in paths}
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
            task=row["prompt"],
            weight=1.0,
        )


def _read_templates(path: Path, passages: Mapping[str, Sequence[str]]) -> Iterator[Example]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        tier, language, text = line.split("\t")
        text = text.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
        copies = _COPIES if _SLOT.search(text) or _MATERIAL.search(text) else 1
        for copy in range(copies):
            template = _lay_out(text, number * 5 + copy * 3)
            prompt = _fill(template, language, passages, number * 7 + copy * 3)
            yield Example(
                source=path.stem,
                category=language,
                group=f"{path.stem}:{number}",
                tier=tier,
                prompt=prompt,
                task=_SLOT.sub("", template),
                weight=1.0 / copies,
            )


def _lay_out(text: str, seed: int) -> str:
    """An instruction that ends in ``{+material}``, with a slot for its material before, behind or around it."""
    material = _MATERIAL.search(text)
    if material is None:
        return text
    instruction = text[: material.start()]
    layout = _LAYOUTS[seed % len(_LAYOUTS)]
    return layout.format(i=instruction, j=instruction.rstrip(".?"), p=f"{{{material.group(1)}}}")


def framed(examples: Sequence[Example]) -> Iterator[Example]:
    """Each example once more in a frame that changes nothing of its tier, at three quarters of its weight."""
    for number, example in enumerate(examples):
        frame = _FRAMES[number % len(_FRAMES)]
        prompt, task = (_framed(frame, text) for text in (example.prompt, example.task))
        yield Example(
            source=example.source,
            category=example.category,
            group=example.group,
            tier=example.tier,
            prompt=prompt,
            task=task,
            weight=example.weight * 0.75,
        )


def _framed(frame: str, text: str) -> str:
    return frame.replace("{}", text) if frame != "{}" else text.rstrip("?.!").lower()


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
