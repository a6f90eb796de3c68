"""TRL's configs: every field has a fate, batches and steps are TRL's, what cannot be carried over is told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from orchestrator.trl.convert import JOBS, WITH_REWARDS, convert
from orchestrator.trl.draft import Draft
from orchestrator.trl.fates import INERT, REFUSED
from orchestrator.trl.known import TRAINERS, Trainer, all_fields, config_fields, trainer_of
from orchestrator.trl.reading import checked, read_config
from orchestrator.trl.shared import Around
from services.common.errors import ConfigError, InvalidInput
from services.common.spec.run import RunSpec

ROOT = Path(__file__).parents[4]
STOPS = {"stop_token": "eos"}


def converted(trainer: Trainer, rows: int = 100, model_type: str = "", **given: Any) -> Draft:
    rewards = ("trl:mine:f",) if trainer in WITH_REWARDS else ()
    around = Around(rows=rows, prompts_file="p.jsonl", model="m", rewards=rewards, model_type=model_type)
    return convert(trainer, {**(STOPS if trainer == "ppo" else {}), **given}, around)


def run_of(draft: Draft) -> RunSpec:
    return RunSpec.model_validate(draft.tables)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_field_has_one_fate(trainer: Trainer) -> None:
    """A config that says everything at its default gets a note for each field; no field is in both tables."""
    everything = {**all_fields(trainer), **(STOPS if trainer == "ppo" else {})}
    draft = converted(trainer, **{**everything, "model_name_or_path": "m"})
    assert {note.field for note in draft.notes} == set(everything)
    assert not set(INERT) & set(REFUSED)
    if trainer not in JOBS:
        run_of(draft)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_each_value_of_each_field_is_mapped_refused_or_told(trainer: Trainer) -> None:
    """Whatever else a field is set to, something is said of it: no field is dropped in silence."""
    for name, default in all_fields(trainer).items():
        other = {bool: not default, int: 3, float: 0.25, str: "other"}.get(type(default), ["other"])
        try:
            draft = converted(trainer, **{name: other})
        except ConfigError as error:
            together = {"use_peft": "lora_dropout"}.get(name, "generation")  # what it then does not go with
            assert name in str(error) or together in str(error)
        except (TypeError, ValueError):
            assert not isinstance(default, bool | int | float | str)
        else:
            assert [note.what for note in draft.notes if note.field == name], name


def test_grpo_at_trls_defaults() -> None:
    """Eight completions of one prompt a step, 300 steps for 100 rows, TRL's rate, schedule, length and loss."""
    run = run_of(converted("grpo"))
    assert (run.rollout.batch_groups, run.group_size, run.steps) == (1, 8, 300)
    assert (run.optimiser.learning_rate, run.optimiser.schedule, run.optimiser.weight_decay) == (
        1e-6,
        "linear",
        0,
    )
    assert (run.sampling.max_new_tokens, run.sampling.temperature, run.seed) == (512, 1.0, 42)
    assert run.algorithm.model_dump(exclude={"importance_sampling"}) == {
        **run.algorithm.model_dump(exclude={"importance_sampling"}),
        "kind": "grpo", "loss_type": "dapo", "beta": 0.0, "epsilon": 0.2, "epsilon_high": None, "delta": None,
        "scale_rewards": "group", "epochs": 1, "minibatches": 1, "entropy_coefficient": 0.0,
    }  # fmt: skip
    assert run.online.importance_sampling.mode == "none"
    assert [(reward.source, reward.weight) for reward in run.reward_sources] == [("trl:mine:f", 1.0)]
    assert (run.checkpoint.every_steps, run.checkpoint.keep) == (300, 2)


def test_updates_of_a_generation_batch() -> None:
    """4 per device, 4 slices, accumulated over 2, twice: 2 groups of 8, 2 minibatches, 2 epochs, 10 steps."""
    fields = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4,
        "num_iterations": 2, "num_train_epochs": 1, "warmup_steps": 0.1, "save_steps": 8,
    }  # fmt: skip
    run = run_of(converted("grpo", rows=20, **fields))
    assert (run.rollout.batch_groups, run.online.minibatches, run.online.epochs, run.steps) == (2, 2, 2, 10)
    assert run.optimiser.warmup_steps == 1  # a tenth of 40 updates, 4 a step
    assert run.checkpoint.every_steps == 2
    short = converted("grpo", rows=20, max_steps=5, **fields)
    assert run_of(short).steps == 2
    [note] = [note for note in short.notes if note.field == "max_steps"]
    assert note.what == "steps = 2 (5 updates, 4 a step, 3 more to end with a whole batch)"


def test_grpos_kin() -> None:
    """Values under their names here; the correction where vLLM samples; booleans of scale_rewards."""
    run = run_of(
        converted(
            "grpo", loss_type="cispo", epsilon_high=5.0, scale_rewards=False, entropy_coef=0.01, use_vllm=True,
            vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=2.0, bf16=True,
            lr_scheduler_type="constant_with_warmup", max_grad_norm=0, top_k=50, log_completions=True,
        )
    )  # fmt: skip
    assert run.algorithm.model_dump()["scale_rewards"] == "none"
    assert run.online.importance_sampling.model_dump() == {
        "mode": "token_truncate",
        "clip_max": 2.0,
        "clip_min": None,
    }
    assert (run.online.entropy_coefficient, run.model.dtype, run.sampling.top_k) == (0.01, "bfloat16", 50)
    assert (run.optimiser.schedule, run.optimiser.max_grad_norm, run.rollout.keep) == ("constant", 1e30, True)


def test_rloo_bounds_its_rewards() -> None:
    """reward_clip_range becomes clip_scores; beta and the number of completions are RLOO's own."""
    run = run_of(converted("rloo", reward_clip_range=[-1.0, 1.0]))
    assert run.online.clip_scores == (-1.0, 1.0)
    assert (run.group_size, run.online.penalty.coefficient) == (2, 0.05)


def test_ppo_of_trl_1_12() -> None:
    """Its preset, and its fields by name; steps by episodes; the reward model is the value model's beginning."""
    draft = converted(
        "ppo", total_episodes=100, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_mini_batches=4,
        kl_coef=0.1, lam=0.9, cliprange=0.3, missing_eos_penalty=1.0, kl_estimator="k3",
    )  # fmt: skip
    run = run_of(draft)
    assert (run.rollout.batch_groups, run.steps, run.online.minibatches) == (8, 13, 2)
    settings = run.algorithm.model_dump()
    assert (settings["preset"], settings["score_position"], settings["value_model"]) == (
        "trl",
        "past_end",
        "reward_model",
    )
    assert (settings["clip_ratio"], settings["gae_lambda"], settings["missing_end_penalty"]) == (
        0.3,
        0.9,
        1.0,
    )
    assert (settings["kl"]["coefficient"], settings["kl"]["estimator"]) == (0.1, "k3")
    assert (run.reward_model, run.sampling.temperature, run.sampling.max_new_tokens) == (
        "trl:mine:f",
        0.7,
        53,
    )


def test_minibatches_that_trl_refuses_are_refused() -> None:
    """A batch is per_device_train_batch_size x gradient_accumulation_steps episodes, cut into num_mini_batches."""
    with pytest.raises(ConfigError, match="num_mini_batches = 3: TRL itself wants a divisor of a batch's 8"):
        converted("ppo", per_device_train_batch_size=8, gradient_accumulation_steps=1, num_mini_batches=3)


@pytest.mark.parametrize(
    ("device", "accumulated", "mini", "updates"),
    [(8, 1, 1, 1), (8, 1, 2, 2), (4, 2, 1, 1), (4, 2, 2, 1), (4, 2, 4, 2), (2, 4, 2, 1), (1, 2, 2, 1)],
)
def test_ppo_updates_once_in_so_many_micro_batches(
    device: int, accumulated: int, mini: int, updates: int
) -> None:
    """accelerate counts an epoch's micro-batches, which num_mini_batches cuts smaller only beyond their number."""
    fields = {
        "per_device_train_batch_size": device,
        "gradient_accumulation_steps": accumulated,
        "num_mini_batches": mini,
    }
    assert run_of(converted("ppo", **fields)).online.minibatches == updates


def test_updates_over_two_epochs_are_refused() -> None:
    """Two minibatches of 3 in micro-batches of 2 and 1 make 4, of which TRL accumulates 3."""
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_mini_batches": 2}
    with pytest.raises(ConfigError, match="num_mini_batches = 2: an epoch's 4 micro-batches"):
        converted("ppo", **fields)


def test_ppo_never_clips() -> None:
    """TRL's PPO takes no notice of max_grad_norm, whatever it says; the other trainers clip at it."""
    for norm in (1.0, 0.5):
        draft = converted("ppo", max_grad_norm=norm)
        assert run_of(draft).optimiser.max_grad_norm == 1e30
        [note] = [note for note in draft.notes if note.field == "max_grad_norm"]
        assert note.what.endswith("(TRL's PPO never clips)")
    assert run_of(converted("grpo", max_grad_norm=0.5)).optimiser.max_grad_norm == 0.5


def test_a_constant_rate_has_no_warm_up() -> None:
    """In transformers only constant_with_warmup has one; that the steps given do nothing is told."""
    draft = converted("grpo", lr_scheduler_type="constant", warmup_steps=10)
    assert run_of(draft).optimiser.warmup_steps == 0
    [note] = [note for note in draft.notes if note.field == "warmup_steps"]
    assert note.fate == "no effect"
    warm = run_of(converted("grpo", lr_scheduler_type="constant_with_warmup", warmup_steps=10))
    assert (warm.optimiser.schedule, warm.optimiser.warmup_steps) == ("constant", 10)


def test_dpo_goes_by_updates() -> None:
    """Pairs of an update, updates of an epoch rounded up, beta and label smoothing by name."""
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    run = run_of(converted("dpo", rows=20, beta=0.2, label_smoothing=0.1, **fields))
    assert (run.rollout.batch_groups, run.steps) == (8, 6)
    assert run.algorithm.model_dump() == {"kind": "dpo", "beta": 0.2, "label_smoothing": 0.1}


@pytest.mark.parametrize(("trainer", "command"), [("sft", "sft"), ("reward", "reward-model")])
def test_jobs_know_the_flags_they_are_given(trainer: Trainer, command: str) -> None:
    """The command line is one that the job parses, with TRL's numbers."""
    from services.learner.jobs.__main__ import app

    draft = converted(trainer, rows=64, num_train_epochs=2, warmup_steps=4, output_dir="o")
    parser = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    assert draft.arguments[0] == command
    given = parser.make_context(command, draft.arguments[1:]).params
    assert (given["epochs"], given["warmup_share"], given["weight_decay"]) == (2, 0.25, 0.0)
    assert (given["learning_rate"], given["max_tokens"], given["out"]) == (
        config_fields(trainer)["learning_rate"], 1024, Path("o"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trainer", "field", "value", "said"),
    [
        ("grpo", "loss_type", "vespo", "expected one of grpo"),
        ("grpo", "num_generations", 3, "expected a divisor of the 8 completions"),
        ("grpo", "mask_truncated_completions", True, "every completion counts"),
        ("grpo", "repetition_penalty", 1.1, "another distribution"),
        ("grpo", "sync_ref_model", True, "the reference is frozen"),
        ("grpo", "multi_objective_aggregation", "normalize_then_sum", "depends on its row alone"),
        ("grpo", "reward_weights", [1.0, 2.0], "2 for 1 reward functions"),
        ("grpo", "generation_kwargs", {"x": 1}, "a filter of sampling"),
        ("grpo", "lr_scheduler_type", "polynomial", "expected one of linear"),
        ("grpo", "optim", "sgd", "expected one of adamw_torch"),
        ("grpo", "gradient_accumulation_steps", 2, ""),
        ("dpo", "loss_type", ["sigmoid", "sft"], "expected sigmoid"),
        ("sft", "assistant_only_loss", True, "the last answer"),
        ("sft", "max_steps", 10, "goes by num_train_epochs"),
        ("sft", "packing", True, "a batch would be of packed sequences"),
        ("sft", "truncation_mode", "middle", "expected keep_start or keep_end"),
        ("grpo", "num_generations", 0, "expected a whole number of at least 1"),
        ("grpo", "num_generations", True, "expected a number"),
        ("grpo", "per_device_train_batch_size", 0, "expected a whole number of at least 1"),
        ("dpo", "per_device_train_batch_size", 1.5, "expected a whole number of at least 1"),
        ("ppo", "gradient_accumulation_steps", 0, "expected a whole number of at least 1"),
        ("reward", "gradient_accumulation_steps", None, "expected a number"),
        ("sft", "num_train_epochs", None, "expected a number"),
        ("sft", "learning_rate", None, "expected a value"),
        ("grpo", "learning_rate", None, "expected a value"),
        ("grpo", "adam_beta1", None, "expected a value"),
        ("grpo", "save_steps", None, "expected a number"),
        ("grpo", "steps_per_generation", "many", "expected a number"),
        ("ppo", "total_episodes", "many", "expected a number"),
        ("grpo", "reward_weights", 1.0, "expected a list of numbers"),
        ("grpo", "reward_weights", ["much"], "expected a list of numbers"),
        ("rloo", "reward_clip_range", 1.0, "expected two numbers"),
        ("reward", "center_rewards_coefficient", 0.01, "no such term"),
        ("ppo", "stop_token", None, "expected eos"),
    ],
)
def test_what_is_refused(trainer: Trainer, field: str, value: Any, said: str) -> None:
    """The field, its value, and why, in one line; what TRL's defaults allow is not refused."""
    if not said:
        converted(trainer, **{field: value})
        return
    with pytest.raises(ConfigError) as raised:
        converted(trainer, **{field: value})
    assert f"{field} = {value}: " in str(raised.value)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_numbers_that_yaml_leaves_as_text() -> None:
    """1e5 is text for YAML; a field that is empty by default gives no type to read it by."""
    run = run_of(converted("ppo", total_episodes="1e5", per_device_train_batch_size=10))
    assert (run.rollout.batch_groups, run.steps) == (10, 10_000)
    weights = run_of(converted("grpo", reward_weights=["5e-1"])).reward_sources
    assert [reward.weight for reward in weights] == [0.5]


def test_all_refusals_are_told_at_once() -> None:
    """Somebody who must change two fields reads of both."""
    with pytest.raises(ConfigError, match=r"min_p = 0\.1: .*; sync_ref_model = True: "):
        converted("grpo", min_p=0.1, sync_ref_model=True)


def test_without_effect_is_reported() -> None:
    """A field that changes nothing is named with the reason; values at TRL's defaults are not in the way."""
    draft = converted("grpo", log_level="error", logging_steps=10, use_liger_kernel=True)
    told = {note.field: (note.fate, note.what) for note in draft.differing()}
    assert set(told) == {"log_level", "use_liger_kernel"}
    assert told["log_level"] == ("no effect", INERT["log_level"])


def parsed(draft: Draft) -> dict[str, Any]:
    """The values that the job reads out of its command."""
    from services.learner.jobs.__main__ import app

    command = draft.arguments[0]
    parser = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    found: dict[str, Any] = parser.make_context(command, draft.arguments[1:]).params
    return found


def test_jobs_train_what_trl_trains() -> None:
    """Embeddings too, on all rows but the fewest that a job holds out, which is told."""
    for trainer in JOBS:
        draft = converted(trainer, dataset_name="d", output_dir="o")
        given = parsed(draft)
        assert (given["train_embeddings"], given["frozen_layers"], given["held_out_share"]) == (True, 0, 0.01)
        [note] = [note for note in draft.notes if note.field == "dataset_name"]
        assert note.what.endswith("(1% of the prompts is held out, at least one)")


def test_adapters_of_sft_are_on_pefts_layers() -> None:
    """Where the config names none peft goes by the model's type; all-linear is every one."""
    peft = {"use_peft": True, "lora_dropout": 0.0, "output_dir": "o"}
    layers = {
        "": ["q_proj", "v_proj"],
        "qwen2": ["q_proj", "v_proj"],
        "gpt2": ["c_attn"],
        "gpt_neox": ["query_key_value"],
    }
    for model_type, chosen in layers.items():
        assert parsed(converted("sft", model_type=model_type, **peft))["lora_target"] == chosen
    named = parsed(converted("sft", lora_target_modules=["o_proj"], **peft))
    assert (named["lora_target"], named["lora_rank"]) == (["o_proj"], 16)
    every = parsed(converted("sft", lora_target_modules="all-linear", **peft))["lora_target"]
    assert not every


def test_rows_that_are_too_long() -> None:
    """No trainer's are cut or left out as TRL does it, and each note says what becomes of them instead."""
    cut = {"max_length": 64, "truncation_mode": "keep_end"}
    drafts = (converted("dpo", **cut), converted("sft", **cut), converted("reward", max_length=64))
    told = {(draft.trainer, note.field): note.what for draft in drafts for note in draft.notes}
    assert "not cut here" in told["dpo", "max_length"]
    assert "not cut here" in told["dpo", "truncation_mode"]
    assert "lose their prompt's beginning first" in told["sft", "max_length"]
    assert "keeps its answer" in told["sft", "truncation_mode"]
    assert "TRL leaves their pairs out" in told["reward", "max_length"]


def test_adapters_logs_and_what_is_trained() -> None:
    """use_peft becomes [optimiser.lora], with peft's layers where none are named; without it embeddings learn too."""
    plain = run_of(converted("grpo", report_to=["wandb", "trackio"], optim="adamw_bnb_8bit"))
    assert plain.optimiser.train_embeddings
    assert plain.optimiser.kind == "adamw_8bit"
    assert plain.logging.to == ("wandb",)
    adapted = run_of(
        converted("grpo", use_peft=True, lora_r=8, lora_alpha=4, use_dora=True, report_to="none")
    )
    lora = adapted.optimiser.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, lora.dora) == (8, 4, 0.05, True)
    assert lora.targets == ("q_proj", "v_proj")
    assert not adapted.optimiser.train_embeddings
    assert adapted.logging.to == ()
    every = run_of(converted("dpo", use_peft=True, lora_target_modules=["all-linear"]))
    assert every.optimiser.lora is not None
    assert every.optimiser.lora.targets == ()


def test_configs_are_read_as_trl_reads_them(tmp_path: Path) -> None:
    """YAML's 1e-6 is a number; a mistyped name is told with what it may have meant; mixtures and env are refused."""
    file = tmp_path / "c.yaml"
    file.write_text("learning_rate: 1e-6\nnum_generations: 4\nbf16: 'true'\n", encoding="utf-8")
    assert checked("grpo", read_config(file), "c") == {
        "learning_rate": 1e-6,
        "num_generations": 4,
        "bf16": "true",
    }
    with pytest.raises(
        ConfigError, match=r"learning_rat: there is no such field \(meant: learning_rate\?\) \(grpo\)"
    ):
        checked("grpo", {"learning_rat": 1}, "c")
    with pytest.raises(ConfigError, match="learning_rate: expected a number, got 'fast'"):
        checked("grpo", {"learning_rate": "fast"}, "c")
    for text, said in (
        ("env: {A: b}", "env: not read"),
        ("datasets: [{path: x}]", "datasets: not read"),
        ("a: [", "YAML"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            read_config(file)


def test_the_trainer_is_told_by_its_fields() -> None:
    """Fields that one trainer alone has; where there is none, the flag is asked for."""
    assert trainer_of({"scale_rewards": "group", "beta": 0.1}) == "grpo"
    assert trainer_of({"normalize_advantages": True}) == "rloo"
    assert trainer_of({"kl_coef": 0.1}) == "ppo"
    assert trainer_of({"completion_only_loss": True}) == "sft"
    with pytest.raises(InvalidInput, match="give --trainer"):
        trainer_of({"learning_rate": 1e-5})


_DUMP = """
import dataclasses, json, sys
def table(config):
    found = {}
    for field in dataclasses.fields(config):
        value = field.default
        if value is dataclasses.MISSING:
            value = field.default_factory()
        found[field.name] = getattr(value, "value", value)
    return found
import trl
if trl.__version__.startswith("1.16"):
    made = {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig, "dpo": trl.DPOConfig, "sft": trl.SFTConfig,
            "reward": trl.RewardConfig}
else:
    from trl.experimental.ppo import PPOConfig
    made = {"ppo": PPOConfig}
one = next(iter(made.values()))(output_dir="out", use_cpu=True, bf16=False)
print(json.dumps({"version": trl.__version__, "fields": {name: table(one) for name, one in made.items()},
                  "dumped": one.to_dict()}, default=str))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("peer", "version"), [("trl", "1.16"), ("trl112", "1.12")])
def test_the_table_is_the_packages(peer: str, version: str) -> None:
    """Names and defaults of every config are those of the real package, and a config that it dumps is read."""
    python = ROOT / ".venv-peers" / peer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"make peer-{peer} makes the environment that this compares with")
    done = subprocess.run([python, "-c", _DUMP], capture_output=True, text=True, check=True, timeout=280)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["version"].startswith(version)
    for trainer, fields in told["fields"].items():
        assert config_fields(trainer) == fields
    trainer = next(iter(told["fields"]))
    given = checked(trainer, told["dumped"], "dumped")
    draft = converted(trainer, **{**given, **(STOPS if trainer == "ppo" else {})})
    assert draft.tables["model"]["dtype"] == "float32"
    run_of(draft)
