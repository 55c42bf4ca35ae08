"""Is a prompt sent to the tier of its label: by cross validation and on sources left out; and how long it takes.

Under-routed (sent cheaper than its label) and over-routed are shares of the prompts, a template counting once.
"""

import random
import time
from collections.abc import Mapping, Sequence

from benchmarks.tier_prompts import Example, read_examples
from benchmarks.tier_training import TIERS, Model, choose_confidence, fit, leave_one_out
from placement.tiers import TierClassifier, TierSigns

_FOLDS = 5
_SEED = 5
_LENGTHS = (50, 200, 500, 1_000, 2_000, 4_000, 8_000)
_TIMES = 2_000
_HARD = {"no word breaks": "a", "digits": "7", "Chinese": "市议会决定关闭旧桥", "emoji": "😀🎉", "Hindi": "पुराने पुल "}
Judged = tuple[Example, str]


def main() -> None:
    sources = read_examples()
    print(f"{'source':<16}{'prompts':>9}" + "".join(f"{tier:>6}" for tier in TIERS))
    for name, examples in sources.items():
        counts = [sum(e.tier == tier for e in examples) for tier in TIERS]
        print(f"{name:<16}{len(examples):>9}" + "".join(f"{count:>6}" for count in counts))
    held_out = leave_one_out(sources)
    confidence = choose_confidence(held_out)
    print(f"\nconfidence chosen on the left-out sources: {confidence}\n")
    _report_left_out(sources, held_out, confidence)
    _report_folds(sources, confidence)
    _report_time(TierClassifier.load(), [e.prompt for examples in sources.values() for e in examples])


def _report_left_out(
    sources: Mapping[str, Sequence[Example]], held_out: Sequence[tuple[Model, Sequence[Example]]], confidence: float
) -> None:
    """Each source judged by a model that never saw it; the confidence was chosen on all of these together."""
    print("leave one source out:")
    shares = []
    for name, (model, examples) in zip(sources, held_out, strict=True):
        judged = _judge(model.classifier(confidence), examples)
        shares.append(_shares(judged))
        print(f"  {name:<16}{_line(shares[-1])}  right by tier: {_by_tier(judged)}")
    mean = tuple(sum(column) / len(shares) for column in zip(*shares, strict=True))
    print(f"  {'mean':<16}{_line(mean)}")
    print("leave one source out, confidence chosen without it:")
    nested = []
    for index, (model, examples) in enumerate(held_out):
        others = [pair for other, pair in enumerate(held_out) if other != index]
        nested.append(_shares(_judge(model.classifier(choose_confidence(others)), examples)))
    mean = tuple(sum(column) / len(nested) for column in zip(*nested, strict=True))
    print(f"  {'mean':<16}{_line(mean)}\n")


def _report_folds(sources: Mapping[str, Sequence[Example]], confidence: float) -> None:
    examples = [example for some in sources.values() for example in some]
    groups = sorted({example.group for example in examples})
    random.Random(_SEED).shuffle(groups)  # noqa: S311 - folds
    fold_of = {group: index % _FOLDS for index, group in enumerate(groups)}
    judged: list[Judged] = []
    for fold in range(_FOLDS):
        model = fit([example for example in examples if fold_of[example.group] != fold])
        held = [example for example in examples if fold_of[example.group] == fold]
        judged += _judge(model.classifier(confidence), held)
    print(f"{_FOLDS}-fold cross validation (a template's copies in one fold): {_line(_shares(judged))}")
    print("  label \\ sent to" + "".join(f"{tier:>8}" for tier in TIERS))
    for label in TIERS:
        row = [sum(e.weight for e, sent in judged if e.tier == label and sent == tier) for tier in TIERS]
        print(f"  {label:<15}" + "".join(f"{count:>8.0f}" for count in row))


def _judge(classifier: TierClassifier, examples: Sequence[Example]) -> list[Judged]:
    return [(example, classifier.of_text(example.prompt).value) for example in examples]


def _shares(judged: Sequence[Judged]) -> tuple[float, ...]:
    """Accuracy, under-routed and over-routed."""
    whole = sum(example.weight for example, _ in judged)
    under = sum(example.weight for example, sent in judged if sent < example.tier) / whole
    over = sum(example.weight for example, sent in judged if sent > example.tier) / whole
    return 1 - under - over, under, over


def _line(shares: Sequence[float]) -> str:
    return f"right {shares[0]:6.1%}  under-routed {shares[1]:5.1%}  over-routed {shares[2]:6.1%}"


def _by_tier(judged: Sequence[Judged]) -> str:
    parts = []
    for tier in TIERS:
        whole = sum(example.weight for example, _ in judged if example.tier == tier)
        if whole:
            right = sum(example.weight for example, sent in judged if example.tier == tier == sent)
            parts.append(f"{tier} {right / whole:.0%}")
    return ", ".join(parts)


def _report_time(classifier: TierClassifier, prompts: Sequence[str]) -> None:
    """Time of one `classify`: wall, and the processor time of this thread, which others' load doesn't lengthen."""
    print(f"\n{'microseconds':<28}{'wall p50':>10}{'p99':>8}{'thread p50':>13}{'p99':>8}")
    prose = "\n\n".join(prompt for prompt in prompts if prompt.isascii())
    for length in _LENGTHS:
        spread = max(1, len(prose) - length)
        texts = [prose[(7_919 * n) % spread :][:length] for n in range(_TIMES)]
        _time(f"English, {length} characters", classifier, texts)
    for name, unit in _HARD.items():
        text = (unit * (_LENGTHS[-1] // len(unit) + 1))[: _LENGTHS[-1]]
        _time(f"{name}, {len(text)} characters", classifier, [text] * _TIMES)
    _time("the prompts themselves", classifier, prompts)


def _time(name: str, classifier: TierClassifier, texts: Sequence[str]) -> None:
    wall, thread = [], []
    for text in texts:
        signs = TierSigns(
            prompt=text,
            earlier_turns=0,
            has_tools=False,
            has_schema=False,
            has_images=False,
            max_tokens=None,
            prompt_characters=len(text),
        )
        before = time.perf_counter_ns(), time.thread_time_ns()
        classifier.classify(signs)
        wall.append(time.perf_counter_ns() - before[0])
        thread.append(time.thread_time_ns() - before[1])
    figures = [sorted(times)[int(share * len(times))] / 1_000 for times in (wall, thread) for share in (0.5, 0.99)]
    print(f"{name:<28}{figures[0]:>10.0f}{figures[1]:>8.0f}{figures[2]:>13.0f}{figures[3]:>8.0f}")
