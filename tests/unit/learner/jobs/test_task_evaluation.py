"""Evaluating tiny models on a task: figures, intervals, differences, what is refused before a model is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from services.common.errors import InvalidInput, NotFound
from services.common.metrics.intervals import Estimate
from services.common.tasks.base import TaskRow
from services.common.tasks.registry import find_task
from services.learner.jobs.answerers import Sampling, judged, model_folder, named
from services.learner.jobs.drawing import drawn
from services.learner.jobs.evaluation_table import print_table, shown
from services.learner.jobs.task_evaluation import (
    TaskEvaluation,
    as_json,
    evaluate,
    metric_specs,
    save_answers,
)
from services.models.logprobs import completion_logprobs
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [
        f"{name}={make_tiny_causal(root / name, seed=seed, context_length=256)}"
        for seed, name in enumerate(["before", "after"])
    ]


def asked(models: list[str], task: str = "increasing-numbers", **changed: object) -> TaskEvaluation:
    found = find_task(task)
    given = {
        "task": found,
        "models": named(models),
        "metrics": metric_specs(found, [], judge=False),
        "sampling": Sampling(max_new_tokens=6, temperature=1.0, completions=2, seed=3),
        "prompts": 5,
        "dtype": "float32",
        "threads": 1,
    }
    return TaskEvaluation(**(given | changed))  # type: ignore[arg-type]


def test_two_models_side_by_side(models: list[str], tmp_path: Path) -> None:
    """Each has every figure with an interval; the second also its difference, which is that of the values; JSON too."""
    heard: list[str] = []
    wanted = asked(models)
    before, after = columns = evaluate(wanted, heard.append)
    assert list(before.values) == ["reward", "length", "repetition-2"]
    assert not before.differences
    for spec, found in after.differences.items():
        assert found.value == pytest.approx(after.values[spec].value - before.values[spec].value)
    assert heard[-1] == "after: 10 of 10 answers"
    told = json.loads(json.dumps(as_json(wanted, columns)))
    assert told["prompts"] == 5
    assert told["models"][1]["minus_first"]["length"]["value"] == after.differences["length"].value
    save_answers(tmp_path / "answers.jsonl", columns)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["before"] * 10 + ["after"] * 10


def test_the_same_seed_gives_the_same_answers(models: list[str]) -> None:
    """The same model twice differs by 0, and another seed gives other answers."""
    again = [models[0], models[0].replace("before", "again", 1)]
    first, second = evaluate(asked(again), lambda _: None)
    assert first.groups == second.groups
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in second.differences.values())
    other = Sampling(max_new_tokens=6, temperature=1.0, completions=2, seed=4)
    rows = [sample.prompt for group in first.groups for sample in group]
    [changed] = evaluate(asked(models[:1], sampling=other), lambda _: None)
    assert [sample.completion for group in changed.groups for sample in group] != rows


def test_perplexity_is_the_judges(models: list[str]) -> None:
    """exp of minus the mean log-prob of the answers' tokens, as the judge's own log-probs say."""
    wanted = asked(models[:1], metrics=["perplexity"], judge=models[1].partition("=")[2])
    [column] = evaluate(wanted, lambda _: None)
    judge = loaded_from(Path(wanted.judge))
    pairs = []
    for sample in (sample for group in column.groups for sample in group):
        ids = [
            judge.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (sample.prompt, sample.completion)
        ]
        if ids[1]:
            pairs.append((np.array(ids[0], np.int32), np.array(ids[1], np.int32)))
    values = completion_logprobs(judge.model, pairs, temperature=1.0, token_budget=512)
    expected = math.exp(-float(np.concatenate(values).mean()))
    assert column.values["perplexity"].value == pytest.approx(expected, rel=1e-5)


def test_an_empty_answer_has_no_tokens_to_judge(models: list[str]) -> None:
    """It counts nothing, rather than failing the evaluation."""
    judge = loaded_from(Path(models[0].partition("=")[2]))
    rows = [TaskRow(prompt="a"), TaskRow(prompt=(("user", "b"),))]
    found = judged(judge, rows, [["", "x"], [""]])
    assert [[len(one) for one in group] for group in found] == [[0, 1], [0]]


def test_mistakes_are_told_before_a_model_is_loaded(models: list[str], tmp_path: Path) -> None:
    """No judge, no references, no such reward, two of one name: one line each."""
    task = find_task("increasing-numbers")
    with pytest.raises(InvalidInput, match="perplexity needs --judge"):
        metric_specs(task, ["perplexity"], judge=False)
    with pytest.raises(InvalidInput, match="has no reward"):
        metric_specs(find_task("prompts"), ["reward"], judge=False)
    with pytest.raises(InvalidInput, match="two are called a: name them"):
        named(["a", "a"])
    with pytest.raises(InvalidInput, match=r"metric bleu needs references, .* choose others with --metric"):
        evaluate(asked(["nowhere=/none"], metrics=["bleu"]), lambda _: None)
    with pytest.raises(NotFound, match="nowhere: model /none: no such file"):
        evaluate(asked(["nowhere=/none"]), lambda _: None)


def test_answers_are_of_the_model_not_of_its_generation_config(models: list[str]) -> None:
    """A penalty that is stored beside the weights, which a policy service does not know either, changes no answer."""
    loaded = loaded_from(Path(models[0].partition("=")[2]))
    rows, own = [[5, 6, 7]] * 3, loaded.model.generation_config
    found = []
    for penalty in (1.0, 9.0):
        own.repetition_penalty = penalty
        found.append(drawn(loaded.model, loaded.tokenizer, rows, 12, temperature=0.0))
    assert found[0] == found[1]
    assert loaded.model.generation_config is own


def test_an_answer_ends_at_any_of_the_models_ends(models: list[str]) -> None:
    """Its length is up to the first of them."""
    loaded = loaded_from(Path(models[0].partition("=")[2]))
    [(_, before)] = drawn(loaded.model, loaded.tokenizer, [[5, 6, 7]], 12, temperature=0.0)
    loaded.model.generation_config.eos_token_id = list(range(loaded.facts.vocabulary_size))
    [(_, after)] = drawn(loaded.model, loaded.tokenizer, [[5, 6, 7]], 12, temperature=0.0)
    assert before > after == 1


def test_a_prompt_that_is_too_long_is_told_before_any_answer(models: list[str]) -> None:
    """Not when all shorter ones are answered."""
    heard: list[str] = []
    sampling = Sampling(max_new_tokens=300, temperature=1.0, completions=1, seed=3)
    with pytest.raises(InvalidInput, match="leaves no room for 300 more in a context of 256"):
        evaluate(asked(models, sampling=sampling), heard.append)
    assert not any("answer" in line for line in heard)


def test_a_run_is_its_newest_checkpoint(tmp_path: Path) -> None:
    """A run's, a checkpoint's and a model's folder all lead to a model; a run without a checkpoint says so."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(NotFound, match="has no checkpoint yet"):
        model_folder(str(tmp_path / "run"))
    for step in ("step-000002", "step-000010"):
        model = tmp_path / "run" / "checkpoints" / step / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
    assert model_folder(str(tmp_path / "run")) == str(model)
    assert model_folder(str(model.parent)) == str(model)
    assert model_folder(str(model)) == str(model)
    assert model_folder("package:x") == "package:x"


def test_the_table(models: list[str]) -> None:
    """A row for each metric, a column for each model and one for the difference; the task's reward is named."""
    wanted = asked(models)
    console = Console(record=True, width=200)
    print_table(wanted, evaluate(wanted, lambda _: None), console)
    text = console.export_text()
    assert "after - before" in text
    assert "reward (function:services.common.tasks.increasing_numbers:score) ↑" in text
    assert (
        shown(Estimate(value=0.5, low=0.1, high=0.9, by="bootstrap"), signed=True)
        == "+0.500 [+0.100, +0.900] *"
    )
    assert (
        shown(Estimate(value=0.5, low=-0.1, high=0.9, by="bootstrap"), signed=True)
        == "+0.500 [-0.100, +0.900]"
    )
