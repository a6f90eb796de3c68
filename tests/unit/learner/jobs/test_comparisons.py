"""Comparisons by prompt: each answer once, a prompt's comparisons in one batch."""

from __future__ import annotations

from services.learner.jobs.comparisons import Compared, Pair, batches, by_prompt

MESSAGES = {name: (("user", name),) for name in "xyz"}


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(messages=MESSAGES[prompt], chosen=chosen, rejected=rejected, group=prompt)


def prompt(name: str, wins: int) -> Compared:
    return Compared(messages=(("user", name),), answers=("a", "b"), wins=((0, 1),) * wins)


def test_every_answer_of_a_prompt_stands_once() -> None:
    """A ranking a > b > c comes as three pairs and has three answers; who beat whom is kept, prompts stay apart."""
    pairs = [pair("x", "a", "b"), pair("y", "a", "d"), pair("x", "b", "c"), pair("x", "a", "c")]
    assert by_prompt(pairs) == [
        Compared(messages=MESSAGES["x"], answers=("a", "b", "c"), wins=((0, 1), (1, 2), (0, 2))),
        Compared(messages=MESSAGES["y"], answers=("a", "d"), wins=((0, 1),)),
    ]


def test_batches_hold_whole_prompts_and_enough_comparisons() -> None:
    """With at least 4 comparisons a batch, prompts of 3 make batches of 6, and the last has what is left."""
    prompts = [prompt(name, 3) for name in "abcde"]
    made = batches(prompts, 4, (1, 0))
    assert [sum(len(one.wins) for one in batch) for batch in made] == [6, 6, 3]
    assert sorted(one.messages for batch in made for one in batch) == [one.messages for one in prompts]


def test_prompts_with_one_comparison_make_batches_of_that_many() -> None:
    """Where every prompt was compared once, the number asked for is the number in a batch."""
    assert [len(batch) for batch in batches([prompt(str(at), 1) for at in range(10)], 4, (1, 0))] == [4, 4, 2]


def test_the_order_is_the_seeds() -> None:
    """The same seed gives the same batches, another epoch others."""
    prompts = [prompt(str(at), 1) for at in range(20)]
    assert batches(prompts, 4, (1, 0)) == batches(prompts, 4, (1, 0))
    assert batches(prompts, 4, (1, 0)) != batches(prompts, 4, (1, 1))
