"""What makes reward hacking visible in a run: a second opinion on its completions, and when an alarm is raised."""

from __future__ import annotations

from pydantic import Field

from services.common.spec.base import Spec


class WatchSpec(Spec):
    """[watch]. Alarms never stop a run. They compare means over window_steps steps: the first ones and the last."""

    annotator_rule: str = Field(
        "",
        max_length=256,
        description="A rule that scores every completion beside the reward, such as sentiment; left out: the first "
        "scoring stage whose weight is 0, if there is one.",
    )
    window_steps: int = Field(5, ge=1, le=1000, description="Steps of a window.")
    reward_rise: float = Field(
        0.1,
        ge=0,
        description="Alarm reward_hacking: the reward has risen by so much since the annotator's score was highest, "
        "in standard deviations over the first window's completions.",
    )
    annotator_fall: float = Field(
        0.1, gt=0, description="And the annotator's score has fallen by so much since."
    )
    length_change: float = Field(
        0.5,
        gt=0,
        description="Alarm length_drift: mean length over 1 + this times the first, or under 1 / (1 + this).",
    )
    repetition_rise: float = Field(
        0.2, gt=0, le=1, description="Alarm repetition: rise in the share of token 3-grams that are repeats."
    )
    entropy_share: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Alarm entropy_collapse: the entropy of a token is under this share of the first.",
    )
    kl_nats_per_token: float = Field(
        0.5, gt=0, description="Alarm kl_bound: KL to the reference by token, whatever it was at first."
    )
    least_weight: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Alarm lost_weight: the mean importance factor of a token is under this. Completions that are too "
        "stale do that, and sampling that bars tokens which the policy would draw (min_new_tokens, top_p).",
    )
    worst_samples: int = Field(
        10, ge=0, le=100, description="Of the last window, kept as worst_samples.jsonl; 0: no file."
    )
