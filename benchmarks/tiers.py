"""Is a prompt sent to the tier of its label: by cross validation and on sources left out; and how long it takes.

Under-routed (sent cheaper than its label) and over-routed are shares of the prompts, a template counting once.
"""

import random
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import fmean

from benchmarks.tier_prompts import Example, read_examples
from benchmarks.tier_training import (
    TIERS,
    LeftOut,
    Setting,
    Shares,
    choose_setting,
    fit,
    judge,
    judge_left_out,
    leave_one_out,
    shares_of,
)
from placement.tiers import TierClassifier, TierSigns

_FOLDS = 5
_SEED = 5
_LENGTHS = (50, 200, 500, 1_000, 2_000, 4_000, 8_000)
_TIMES = 2_000
_HARD = {"no word breaks": "a", "digits": "7", "Chinese": "市议会决定关闭旧桥", "emoji": "😀🎉", "Hindi": "पुराने पुल "}
_PARTS = ("right", "under_routed", "over_routed", "reasoning_under_routed")
Judged = tuple[Example, str]


def main() -> None:
    sources = read_examples()
    print(f"{'source':<16}{'prompts':>9}" + "".join(f"{tier:>6}" for tier in TIERS))
    for name, examples in sources.items():
        counts = [sum(e.tier == tier for e in examples) for tier in TIERS]
        print(f"{name:<16}{len(examples):>9}" + "".join(f"{count:>6}" for count in counts))
    left_out = leave_one_out(sources)
    judged = judge_left_out(sources, left_out)
    setting = choose_setting(judged)
    _report_left_out(sources, left_out, judged)
    print(f"chosen on all left-out sources together, and shipped: {setting}\n")
    _report_folds(sources, setting)
    _report_time(TierClassifier.load(), [e.prompt for examples in sources.values() for e in examples])


def _report_left_out(
    sources: Mapping[str, Sequence[Example]],
    left_out: LeftOut,
    judged: Mapping[Setting, Mapping[str, Shares]],
) -> None:
    """Each source by a model that never saw it, with a strength and a confidence chosen without it."""
    print("\nleave one source out, strength and confidence chosen without it:")
    every = []
    for name, examples in sources.items():
        setting = choose_setting(judged, without=name)
        (sent,) = judge(left_out[setting.strength][name], examples, [setting.confidence])
        every.append(judged[setting][name])
        print(f"  {name:<16}{_line(every[-1])}  right by tier: {_by_tier(sent)}")
    parts = {part: fmean(getattr(shares, part) for shares in every) for part in _PARTS}
    print(f"  {'mean':<16}{_line(Shares(**parts))}")


def _report_folds(sources: Mapping[str, Sequence[Example]], setting: Setting) -> None:
    examples = [example for some in sources.values() for example in some]
    groups = sorted({example.group for example in examples})
    random.Random(_SEED).shuffle(groups)  # noqa: S311 - folds
    fold_of = {group: index % _FOLDS for index, group in enumerate(groups)}
    judged: list[Judged] = []
    for fold in range(_FOLDS):
        model = fit([example for example in examples if fold_of[example.group] != fold], setting.strength)
        held = [example for example in examples if fold_of[example.group] == fold]
        judged += judge(model, held, [setting.confidence])[0]
    print(f"{_FOLDS}-fold cross validation (a template's copies in one fold): {_line(shares_of(judged))}")
    print("  label \\ sent to" + "".join(f"{tier:>8}" for tier in TIERS))
    for label in TIERS:
        row = [sum(e.weight for e, sent in judged if e.tier == label and sent == tier) for tier in TIERS]
        print(f"  {label:<15}" + "".join(f"{count:>8.0f}" for count in row))


def _line(shares: Shares) -> str:
    return f"right {shares.right:6.1%}  under-routed {shares.under_routed:5.1%}  over-routed {shares.over_routed:6.1%}"


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
    spread = len(prose) - _LENGTHS[-1]
    long_texts = [prose[(7_919 * n) % spread :][: _LENGTHS[-1]] for n in range(_TIMES)]
    _time("follow-up, 8000 + 8000", classifier, long_texts, previous=long_texts[::-1])
    _time("the prompts themselves", classifier, prompts)


def _time(name: str, classifier: TierClassifier, texts: Sequence[str], previous: Sequence[str] = ()) -> None:
    wall, thread = [], []
    for text, before_it in zip_longest(texts, previous, fillvalue=""):
        signs = TierSigns(
            prompt=text,
            previous_prompt=before_it,
            earlier_turns=int(bool(before_it)),
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
