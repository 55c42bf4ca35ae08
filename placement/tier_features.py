# ruff: noqa: RUF001 - punctuation of other scripts
"""What the tier classifier sees of a prompt: task words at its two ends, and the shape of the whole.

An instruction stands at the beginning or at the end; what lies between is material. So the two ends are read and the
work is bounded whatever the length. Substring searches instead of regular expressions: they are ten times as fast.
"""

import re
from collections.abc import Sequence

from placement.tier_cues import CUES

HEAD_CHARACTERS = 300
TAIL_CHARACTERS = 240
_SEARCHED_CHARACTERS = 8_000
# Words outside ASCII are found more slowly, and a Chinese or Japanese sentence is short.
_DENSE_HEAD = slice(0, 220)
_DENSE_TAIL = slice(-160, None)
_HEAD_TOKENS = 40
_TAIL_TOKENS = 24
_HEAD_WORDS = 24
_TAIL_WORDS = 16
_FIRST_TOKENS = 4
_LAST_TOKENS = 12
_CLOSING_CHARACTERS = 200
_CLOSING_READ = 60
_WORD_CHARACTERS = 6
_HANGUL_CHARACTERS = 2
_LONGEST = 12
_ASCII_WORD = re.compile(r"[a-z]+|[0-9]+")
# Scripts without spaces are read by the character; South and South-East Asian ones have marks that \w leaves out.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|[\u0900-\u109f]+|\d+|[^\W\d_\u3040-\u30ff\u3400-\u9fff\u0900-\u109f]+"
)
_END = {"?": "question", "？": "question", "؟": "question", ":": "colon", "：": "colon", ".": "stop", "。": "stop"}
_CODE = (
    *("```", "def ", "return ", "();", "){", ") {", "};", "#include", "import ", "=>", "SELECT ", "</", "==", "+="),
    *("Traceback", "assert ", "function ", "class ", "[i]", "null", "Error"),
)
_FORMULA = ("=", "^", "$", "\\", "√", "∫", "≤", "≥", " + ", " * ", "%", "×", "÷", "∑", "π", "²")
_OPTIONS = (("A)", "B)", "C)"), ("A.", "B.", "C."), ("(A)", "(B)", "(C)"), ("a)", "b)", "c)"), ("A:", "B:", "C:"))
_QUOTES = ('"', "“", "「", "«", "'")
_ANY = {key: f"any:{cue}" for key, cue in CUES.items()}
_FIRST = {key: f"first:{cue}" for key, cue in CUES.items()}
_LAST = {key: f"last:{cue}" for key, cue in CUES.items()}
_CLOSES = {key: f"closing:{cue}" for key, cue in CUES.items()}


def features(prompt: str) -> list[str]:
    """The names of what is present in ``prompt``, each once, in a fixed order; any text, any length, bounded work."""
    head, tail = prompt, ""
    if len(prompt) > HEAD_CHARACTERS + TAIL_CHARACTERS:
        head, tail = prompt[:HEAD_CHARACTERS], prompt[-TAIL_CHARACTERS:]
    words = _words(head, _DENSE_HEAD)
    first = [_cut(word) for word in words[:_HEAD_TOKENS]]
    last = [_cut(word) for word in (_words(tail, _DENSE_TAIL) if tail else words[_HEAD_TOKENS:])[-_TAIL_TOKENS:]]
    numbers = first.count("#") + last.count("#")
    found = _shape(prompt, head, tail, numbers)
    _add_words(found, first, 0, _HEAD_WORDS)
    _add_words(found, last, max(0, len(last) - _TAIL_WORDS), len(last))
    _add_placed(found, _FIRST, first[:_FIRST_TOKENS])
    _add_placed(found, _LAST, (last or first)[-_LAST_TOKENS:])
    if first:
        found.append("begins:" + first[0])
    _add_closing(found, tail or head)
    return list(dict.fromkeys(found))


def _words(text: str, searched: slice) -> list[str]:
    text = text.lower()
    return _ASCII_WORD.findall(text) if text.isascii() else _WORD.findall(text[searched])


def _cut(word: str) -> str:
    """A word's beginning, so that its inflections are one; every number is "#"."""
    if word[0].isdecimal():
        return "#"
    return word[:_HANGUL_CHARACTERS] if "\uac00" <= word[0] <= "\ud7a3" else word[:_WORD_CHARACTERS]


def _add_words(found: list[str], tokens: Sequence[str], start: int, stop: int) -> None:
    """Task words wherever they stand; single words and pairs between ``start`` and ``stop``."""
    before = ""
    for index, token in enumerate(tokens):
        pair = f"{before} {token}"
        if token in _ANY:
            found.append(_ANY[token])
        if pair in _ANY:
            found.append(_ANY[pair])
        if start <= index < stop:
            found.append(token)
            found.append(pair)
        before = token


def _add_placed(found: list[str], names: dict[str, str], tokens: Sequence[str]) -> None:
    before = ""
    for token in tokens:
        name = names.get(token) or names.get(f"{before} {token}")
        if name:
            found.append(name)
        before = token


def _add_closing(found: list[str], text: str) -> None:
    """How the last line begins where it is no whole paragraph: material often comes before its instruction."""
    before, _, line = text.rstrip().rpartition("\n")
    if before and len(line) <= _CLOSING_CHARACTERS:
        tokens = [_cut(word) for word in _words(line[:_CLOSING_READ], slice(None))[:_FIRST_TOKENS]]
        _add_placed(found, _CLOSES, tokens)
        if tokens:
            found.append("closes:" + tokens[0])


def _shape(prompt: str, head: str, tail: str, numbers: int) -> list[str]:
    """Length, layout, punctuation, numbers, formulas, code and options."""
    text = f"{head}\n{tail}" if tail else head
    size = min(len(prompt).bit_length(), _LONGEST)
    ending = (tail or head).rstrip()
    end = _END.get(ending[-1:], "other")
    opening = len(head.lstrip().partition("\n")[0]).bit_length()
    closing = (len(ending) - ending.rfind("\n") - 1).bit_length()
    is_question = "?" in text or "？" in text or "؟" in text
    count = min(numbers, 8).bit_length()
    found = [
        f"length:{size}",
        f"end:{end}",
        f"end:{end},length:{size}",
        f"question:{is_question},length:{size}",
        f"lines:{min(text.count(chr(10)), 8).bit_length()}",
        f"opening:{opening},length:{size}",
        f"closing:{closing},{end},length:{size}",
        f"numbers:{count}",
        f"numbers:{count},length:{size}",
    ]
    if any(sign in text for sign in _FORMULA):
        found += ("shape:formula", f"formula:{count},{size}")
    if any(sign in text for sign in _CODE) or "```" in prompt[:_SEARCHED_CHARACTERS]:
        found.append("shape:code")
    if any(all(sign in text for sign in row) for row in _OPTIONS):
        found.append("shape:options")
    if any(sign in text for sign in _QUOTES):
        found.append("shape:quote")
    return found
