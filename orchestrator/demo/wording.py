"""Figures in words: the report's headline, durations, shares. Pure text; knows no HTML."""

from __future__ import annotations

from orchestrator.demo.scales import MINUS, NARROW_SPACE, number
from orchestrator.demo.summary import Summary


def duration(seconds: float) -> str:
    """8.4 s, 41 s, 9 min 21 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float, decimals: int = 1) -> str:
    """0.973 as 97.3 %, with a space that does not break; a whole number without its decimals."""
    text = f"{share * 100:.{decimals}f}"
    return f"{text.removesuffix('.' + '0' * decimals) if decimals else text}{NARROW_SPACE}%"


def score(value: float) -> str:
    """A score of one answer with two decimals and a real minus sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)


def headline(summary: Summary) -> str:
    """The result as a sentence."""
    return (
        f"After training, the model's answers beat its old ones in {percent(summary.win_rate)} "
        f"of {summary.comparisons} held-out comparisons."
    )


def interval(summary: Summary) -> str:
    """The win rate's 95 % interval, or its lower end where only that is known."""
    if summary.win_rate_high is None:
        return f"lower bound {percent(summary.win_rate_low)}"
    return f"95{NARROW_SPACE}% interval {percent(summary.win_rate_low)} to {percent(summary.win_rate_high)}"


def details(summary: Summary) -> str:
    """The rest of the result: interval, score, distance, time, memory."""
    gain = summary.score_after - summary.score_before
    moved = "rose" if gain > 0 else "fell" if gain < 0 else "stayed"
    memory = f"{number(summary.peak_memory_gib)} GiB of memory"
    return (
        f"That is the win rate by the annotator ({interval(summary)}), ties counted half. "
        f"The annotator's mean score {moved} from {number(summary.score_before)} "
        f"to {number(summary.score_after)} while the policy moved {number(summary.sequence_kl)} nats "
        f"from its reference. The run took {duration(summary.seconds)} and at most {memory}."
    )
