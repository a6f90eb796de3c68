"""Comparisons by prompt: each answer once, what was said of a prompt in one batch, splits by prompt."""

from __future__ import annotations

from services.common.comparisons import BestOf, Comparison, Message, Origin, Ranking
from services.learner.jobs.comparisons import (
    Choice,
    Compared,
    Win,
    batches,
    by_prompt,
    split_by_group,
    without,
)


def pair(
    prompt: str, chosen: str, rejected: str, group: str = "", margin: float | None = None, **said: str
) -> Comparison:
    return Comparison(
        prompt=(Message("user", prompt),),
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        origin=Origin(place=said.pop("place", ""), group=group or prompt, **said),
    )


def prompt(name: str, wins: int) -> Compared:
    return Compared(messages=(("user", name),), answers=("a", "b"), wins=(Win(0, 1),) * wins, group=name)


def test_every_answer_of_a_prompt_stands_once() -> None:
    """A ranking a > b > c comes as three pairs and has three answers; who beat whom is kept, prompts stay apart."""
    records = [pair("x", "a", "b"), pair("y", "a", "d", margin=0.5), pair("x", "b", "c"), pair("x", "a", "c")]
    x, y = by_prompt(records)
    assert (x.answers, x.wins) == (("a", "b", "c"), (Win(0, 1), Win(1, 2), Win(0, 2)))
    assert (y.messages, y.wins) == ((("user", "y"),), (Win(0, 1, 0.5),))


def test_the_pairs_of_a_ranking_weigh_one_together() -> None:
    """However many answers it has; a plain comparison weighs one, a choice of the best one over all it beats."""
    asked = (Message("user", "x"),)
    answers = ("a", "b", "c", "d")
    origin = Origin(place="", group="x", annotator="ann")
    ranking = Ranking(prompt=asked, answers=answers, ranks=(1, 2, 3, 4), origin=origin, sources=("",) * 4)
    best = BestOf(prompt=asked, answers=answers, best=0, origin=origin, sources=("",) * 4)
    (found,) = by_prompt([ranking, pair("x", "a", "b"), best])
    assert [win.weight for win in found.pairs()] == [1 / 6] * 6 + [1.0] + [1 / 3] * 3
    assert {win.annotator for win in found.wins} == {"ann", ""}


def test_a_prompt_knows_where_it_was_first_said() -> None:
    """For whoever has to say which row a mistake is in."""
    found = by_prompt([pair("x", "a", "b", place="f:1"), pair("x", "b", "c", place="f:2")])
    assert [one.place for one in found] == ["f:1"]


def test_rankings_and_choices_of_the_best_keep_what_they_say() -> None:
    """Of a ranking all pairs but the tie; a choice of the best is one statement about all, and no other pair."""
    asked, origin = (Message("user", "x"),), Origin(place="", group="x")
    ranking = Ranking(
        prompt=asked, answers=("a", "b", "c"), ranks=(1, 2, 2), origin=origin, sources=("",) * 3
    )
    best = BestOf(prompt=asked, answers=("d", "a", "d"), best=1, origin=origin, sources=("",) * 3)
    (found,) = by_prompt([ranking, best])
    assert found.answers == ("a", "b", "c", "d")
    assert found.wins == (Win(0, 1, weight=0.5), Win(0, 2, weight=0.5))
    assert found.choices == (Choice(0, (3, 0)),)
    assert found.statements == 3
    assert found.pairs() == (*found.wins, Win(0, 3))


def test_annotators_who_disagree_are_counted() -> None:
    """Two of three prefer a: two thirds agree, and three compared it; nobody else compared a and c."""
    (found,) = by_prompt([pair("x", "a", "b"), pair("x", "b", "a"), pair("x", "a", "b"), pair("x", "a", "c")])
    agreement = found.agreement()
    assert agreement[0, 1] == agreement[1, 0] == (2 / 3, 3)
    assert agreement[0, 2] == (1.0, 1)


def test_a_verdict_that_is_told_twice_is_one_of_whoever_has_a_name() -> None:
    """Two exports one after the other: ann has one vote, bob another; rows without a name are somebody's each."""
    twice = [pair("x", "a", "b", annotator="ann")] * 2 + [pair("x", "b", "a", annotator="bob")]
    (found,) = by_prompt(twice)
    assert found.agreement()[0, 1] == (0.5, 2)
    (found,) = by_prompt([pair("x", "a", "b")] * 2 + twice[:1])
    assert found.agreement()[0, 1] == (1.0, 3)


def test_turns_of_a_conversation_stay_on_one_side_whatever_else_they_are_called() -> None:
    """Two prompts of one tree with ids of their own are one group; a prompt whose id is that number is another."""
    turns = [pair("x", "a", "b", "1", tree="7"), pair("y", "a", "b", "2", tree="7"), pair("z", "a", "b", "7")]
    groups = [one.group for one in by_prompt(turns)]
    assert groups[0] == groups[1] != groups[2]


def test_a_prompt_under_two_names_is_one_group() -> None:
    """The same words under ids 1 and 2, and id 2 with other words: all are on one side of a split."""
    prompts = by_prompt([pair("x", "a", "b", "1"), pair("x", "c", "d", "2"), pair("y", "a", "b", "2")])
    assert [one.group for one in prompts] == ["1", "1"]
    prompts += [prompt(str(at), 1) for at in range(20)]
    for seed in range(10):
        fit, held = split_by_group(prompts, 0.3, seed)
        assert {one.group for one in fit}.isdisjoint(one.group for one in held)


def test_pretraining_loses_what_is_held_out() -> None:
    """By text, whatever its group is called there, and by group."""
    held = [prompt("x", 1), prompt("y", 1)]
    large = [
        Compared(messages=(("user", "x"),), answers=("a", "b"), wins=(Win(0, 1),), group="other"),
        Compared(messages=(("user", "new"),), answers=("a", "b"), wins=(Win(0, 1),), group="y"),
        prompt("z", 1),
    ]
    assert without(large, held) == [large[2]]


def test_pretraining_loses_what_is_held_out_under_any_name() -> None:
    """The held-out prompt has two names; what pretraining calls by the second one goes, and what hangs together there
    with such a prompt, by a name or by the held-out text itself."""
    held = by_prompt([pair("x", "a", "b", "a1"), pair("x", "a", "c", "b1")])
    large = by_prompt(
        [
            pair("x, asked otherwise", "a", "b", "b1"),
            pair("x, asked otherwise", "c", "b", "c1"),
            pair("the turn after it", "a", "b", "c1"),
            pair("x", "a", "d", "q"),
            pair("another turn of x", "a", "b", "q"),
            pair("z", "a", "b"),
        ]
    )
    assert [one.messages[0][1] for one in without(large, held)] == ["z"]


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
