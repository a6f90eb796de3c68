"""LoRA and DoRA in the trainer: what moves, what stays, what is published, written and taken up again."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from services.common.errors import ConfigError, Mismatch
from services.learner.checkpoints import Checkpoints, write_model
from services.learner.offline.dpo import DpoTrainer
from services.learner.offline.rows import Answer, Compared
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.models.loading import LoadedModel, serving_state
from services.models.logprobs import completion_logprobs
from services.models.low_rank import is_factor
from services.models.trunk import Split
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs, run_spec, samples_from

pytest.importorskip("peft")

SCORES = [1.0, -1.0, 0.5, 2.0, -0.5]
PAIRS = random_pairs(len(SCORES))
RATE = 1e-2
KINDS = [{}, {"dora": True}]
NAMES = ["lora", "dora"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=3)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return samples_from(loaded_from(folder), PAIRS, SCORES, noise=0.3)


def trainer_on(
    folder: Path,
    lora: dict[str, Any] | None,
    *,
    dtype: str = "float32",
    optimiser: dict[str, Any] | None = None,
    **tables: Any,
) -> tuple[Trainer, LoadedModel]:
    """A trainer at RATE with an adapter of rank 4 and scale 2."""
    loaded = loaded_from(folder, dtype)
    table: dict[str, Any] = {"learning_rate": RATE, **(optimiser or {})}
    if lora is not None:
        table["lora"] = {"rank": 4, "alpha": 8, **lora}
    return Trainer(loaded, run_spec(folder, optimiser=table, **tables)), loaded


def logprobs_of(model: Any) -> list[Any]:
    return completion_logprobs(model, PAIRS, temperature=1.0, token_budget=4096)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_adapter_alone_is_trained(
    folder: Path, samples: list[Sample], kind: dict[str, Any], dtype: str
) -> None:
    """It begins as no change at all; a step moves every factor (DoRA's magnitudes too) and no weight of the base."""
    trainer, loaded = trainer_on(folder, kind, dtype=dtype, optimiser={"frozen_layers": 1})
    base = serving_state(loaded_from(folder, dtype).model)
    for name, tensor in trainer.serving_weights().items():
        torch.testing.assert_close(tensor, base[name], atol=1e-6, rtol=0)
    trained = [name for name, one in loaded.model.named_parameters() if one.requires_grad]
    parts = 3 if kind else 2
    assert len(trained) == 2 * 7 * parts  # two layers that are not frozen, seven linear layers each
    assert all(".lora_" in name and "layers.0." not in name for name in trained)
    assert len(trainer.optimiser.state_dict()["masters"]) == len(trained) + 2  # and the value head's
    before = {name: one.detach().clone() for name, one in loaded.model.named_parameters()}
    for _ in range(2):  # at first B is 0, and A has no gradient
        trainer.step(samples)
    for name, one in loaded.model.named_parameters():
        assert torch.equal(one, before[name]) is (name not in trained), name
    merged = trainer.serving_weights()
    changed = {name for name, one in merged.items() if not torch.equal(one, base[name])}
    assert changed == {name for name in base if "_proj" in name and "layers.0." not in name}
    assert all(one.dtype == base[name].dtype for name, one in merged.items())


def test_the_first_step_by_hand(folder: Path, samples: list[Sample]) -> None:
    """With B at 0 the gradient of B is alpha / rank times the weight's own gradient times A transposed: Adam's first
    step moves B by the rate against its sign, and A not at all."""
    trainer, loaded = trainer_on(folder, {}, algorithm={"epochs": 1}, optimiser={"max_grad_norm": 1e9})
    whole, plain = trainer_on(folder, None, algorithm={"epochs": 1}, optimiser={"max_grad_norm": 1e9})
    gradients: dict[str, torch.Tensor] = {}
    step = whole.optimiser.step

    def noted(factor: float = 1.0) -> float:
        gradients.update(
            {name: one.grad.clone() for name, one in plain.model.named_parameters() if one.grad is not None}
        )
        return step(factor)

    whole.optimiser.step = noted  # type: ignore[method-assign]
    before = {name: one.detach().clone() for name, one in loaded.model.named_parameters()}
    trainer.step(samples)
    whole.step(samples)
    after = dict(loaded.model.named_parameters())
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"):
        a, b = (f"{layer}.lora_{side}.default.weight" for side in "AB")
        assert not before[b].any()
        assert torch.equal(after[a], before[a])
        gradient = 2 * gradients[f"{layer}.weight"] @ before[a].T
        sure = gradient.abs() > 1e-4
        assert sure.any()
        torch.testing.assert_close(after[b][sure], -RATE * gradient[sure].sign(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_the_written_out_layers_take_the_adapter(
    folder: Path, samples: list[Sample], kind: dict[str, Any]
) -> None:
    """States and the factors' gradients equal those of peft's layers; switched off, the base's states."""
    trainer, loaded = trainer_on(folder, kind, optimiser={"frozen_layers": 1})
    for _ in range(2):
        trainer.step(samples)
    split, adapter = trainer._split, trainer.adapter
    assert isinstance(split, Split)
    assert adapter is not None
    assert split.unrolled is not None
    hidden = torch.randn((2, 6, 16), generator=torch.Generator().manual_seed(1))
    direction = torch.randn((2, 6, 16), generator=torch.Generator().manual_seed(2))
    factors = [one for name, one in loaded.model.named_parameters() if ".lora_" in name]

    def passed(half: Any) -> tuple[torch.Tensor, ...]:
        states = half(hidden)
        return states, *torch.autograd.grad((states * direction).sum(), factors)

    def peft(given: torch.Tensor) -> torch.Tensor:
        return split.upper_half(inputs_embeds=given, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def ours(given: torch.Tensor) -> torch.Tensor:
        return split.upper(given, [6, 6])

    for found, expected in zip(passed(ours), passed(peft), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with adapter.off(), torch.no_grad():
        base = ours(hidden)
        torch.testing.assert_close(base, peft(hidden), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(base, ours(hidden), atol=1e-3)


def test_dropout_is_pefts_own(folder: Path) -> None:
    """Between input and factors it is no matter of weights: transformers' layers pass."""
    trainer, _ = trainer_on(folder, {"dropout": 0.1})
    assert isinstance(trainer._split, Split)
    assert trainer._split.unrolled is None


def test_the_penalty_begins_at_nothing(folder: Path, samples: list[Sample]) -> None:
    """In bfloat16 too: policy and reference branch go through the same layers, so their log-probs are the same bits."""
    trainer, _ = trainer_on(folder, {}, dtype="bfloat16", rollout={"reference": "branch"})
    assert trainer.step(samples)["objective/kl"] == 0.0


# peft asks transformers by a name that the newest deprecates.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_what_is_published_and_written_is_the_trained_model(
    folder: Path, samples: list[Sample], tmp_path: Path, kind: dict[str, Any]
) -> None:
    """The merged weights, the folder of the model and peft's own reading of the adapter's folder give the log-probs of
    the adapted model; peft's merge gives the same weights."""
    from peft import PeftModel

    trainer, loaded = trainer_on(folder, kind, optimiser={"frozen_layers": 1})
    for _ in range(3):
        trainer.step(samples)
    adapter = trainer.adapter
    assert adapter is not None
    expected, first = logprobs_of(loaded.model), logprobs_of(loaded_from(folder).model)
    assert max(float(np.abs(one - two).max()) for one, two in zip(expected, first, strict=True)) > 1e-2
    write_model(loaded, tmp_path / "model", adapter)
    adapter.write(tmp_path / "adapter")
    written = loaded_from(tmp_path / "model")
    state, merged = serving_state(written.model), trainer.serving_weights()
    assert state.keys() == merged.keys() == serving_state(loaded_from(folder).model).keys()
    assert all(torch.equal(state[name], merged[name]) for name in merged)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    plain = again.merge_and_unload()
    for name, one in plain.named_parameters():
        if name in merged:
            torch.testing.assert_close(one, merged[name], atol=1e-6, rtol=1e-5, msg=name)
    for model in (written.model, plain.eval()):
        for one, two in zip(logprobs_of(model), expected, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-4, rtol=0)
    # What the learner trains on stays as it was.
    assert all(np.array_equal(one, two) for one, two in zip(logprobs_of(loaded.model), expected, strict=True))


def test_any_micro_batches_give_the_same_step(folder: Path, samples: list[Sample]) -> None:
    """Gradients of passes add up: one row at a time gives the update of the whole batch."""
    found = []
    for tokens in (16, 4096):
        trainer, _ = trainer_on(folder, {}, optimiser={"micro_batch_tokens": tokens})
        metrics = trainer.step(samples)
        found.append((metrics["grad_norm"], trainer.serving_weights()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name, one in found[0][1].items():
        torch.testing.assert_close(one, found[1][1][name], atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize("kind", [*KINDS, {"dropout": 0.3}], ids=[*NAMES, "dropout"])
def test_resume_is_exact(folder: Path, samples: list[Sample], tmp_path: Path, kind: dict[str, Any]) -> None:
    """A checkpoint holds the adapter in place of the model; from it the next step is the same, bit for bit, dropout's
    draws too."""
    trainer, loaded = trainer_on(folder, kind, dtype="bfloat16", algorithm={"epochs": 2})
    for _ in range(2):
        trainer.step(samples)
    kept = Checkpoints(tmp_path, keep=1)
    path = kept.write(2, loaded, trainer.state_dict(), {}, trainer.adapter)
    assert {item.name for item in path.iterdir()} == {"adapter", "trainer", "state.json"}
    trained = sum(one.numel() for one in loaded.model.parameters() if one.requires_grad)
    written = load_file(path / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in written)
    assert sum(one.numel() for one in written.values()) == trained
    state = kept.read(path)[0]
    assert sum(one.numel() for one in state["optimiser"]["masters"]) == trained + 16 + 1  # and the value head
    assert state["base_digest"] == loaded.facts.model_digest
    resumed, _ = trainer_on(folder, kind, dtype="bfloat16", algorithm={"epochs": 2})
    resumed.load_state_dict(state)
    one, two = trainer.step(samples), resumed.step(samples)
    assert {name: one[name] for name in one if name != "time/update"} == {
        name: two[name] for name in two if name != "time/update"
    }
    for name, value in trainer.serving_weights().items():
        assert torch.equal(value, resumed.serving_weights()[name]), name


def test_another_base_is_refused(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    """An adapter goes on on the base that it was trained on alone, by digest."""
    trainer, _ = trainer_on(folder, {})
    other, _ = trainer_on(make_tiny_causal(tmp_path / "other", layers=3, seed=5), {})
    before = other.serving_weights()
    with pytest.raises(Mismatch, match="the checkpoint's adapter is of base model"):
        other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert all(torch.equal(one, before[name]) for name, one in other.serving_weights().items())
    whole, _ = trainer_on(folder, None)
    with pytest.raises(Mismatch):
        other.load_state_dict(copy.deepcopy(whole.state_dict()))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_dropout_is_in_the_updates_alone(folder: Path, samples: list[Sample], kind: dict[str, Any]) -> None:
    """The log-probs before the update are the model's own: at step 0 they are the engine's, though the ratio of the
    update's pass is not 1; a second step's too."""
    trainer, loaded = trainer_on(
        folder, {**kind, "dropout": 0.5}, algorithm={"epochs": 1}, rollout={"reference": "branch"}
    )
    trainer.step(samples)
    own = samples_from(loaded_from(folder), PAIRS, SCORES)
    assert trainer.adapter is not None
    trainer.adapter.keep()
    plain = [
        Sample(**{**vars_of(sample), "behaviour_logprobs": logprobs})
        for sample, logprobs in zip(own, logprobs_of(loaded.model), strict=True)
    ]
    metrics = trainer.step(plain)
    assert metrics["sampling/logprob_difference"] < 1e-5
    assert abs(metrics["val/ratio"] - 1) > 1e-6


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_dropout_does_not_reach_the_critic(folder: Path, samples: list[Sample], kind: dict[str, Any]) -> None:
    """value_model = policy: values are the critic's own at every look, so that a resumed step is the same step."""
    tables: dict[str, Any] = {"algorithm": {"value_model": "policy", "epochs": 1}}
    trainer, _ = trainer_on(folder, {**kind, "dropout": 0.5}, **tables)
    for _ in range(2):  # a critic's B is 0 at first, and nothing would be dropped
        trainer.step(samples)
    resumed, _ = trainer_on(folder, {**kind, "dropout": 0.5}, **tables)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    one, two = (each.step(samples) for each in (trainer, resumed))
    assert one["loss/value_avg"] == two["loss/value_avg"]
    assert one["val/var_explained"] == two["val/var_explained"]


def vars_of(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in Sample.__dataclass_fields__}


def test_targets(folder: Path) -> None:
    """Only the named layers get factors; a name that is not there is said, with those that are."""
    trainer, loaded = trainer_on(folder, {"targets": ["q_proj", "v_proj"]}, optimiser={"frozen_layers": 2})
    trained = {name.split(".lora_")[0] for name, one in loaded.model.named_parameters() if one.requires_grad}
    assert trained == {"model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.v_proj"}
    assert trainer.adapter is not None
    assert trainer.adapter.fixed() == serving_state(loaded_from(folder).model).keys() - {
        f"{layer}.weight" for layer in trained
    }
    with pytest.raises(ConfigError, match="no linear layer query: there are down_proj, gate_proj"):
        trainer_on(folder, {"targets": ["query"]})


def test_delivered_alone_the_base_is_named_as_it_is(folder: Path, samples: list[Sample]) -> None:
    """With deliver = adapter what is published is the base's bytes and float32 factors; merged they are the weights."""
    trainer, _ = trainer_on(folder, {"deliver": "adapter"}, dtype="bfloat16")
    for _ in range(2):
        trainer.step(samples)
    base = serving_state(loaded_from(folder, "bfloat16").model)
    state = trainer.serving_weights()
    factors = {name: one for name, one in state.items() if is_factor(name)}
    assert state.keys() - factors.keys() == base.keys()
    assert all(torch.equal(state[name], base[name]) for name in base)
    assert len(factors) == 2 * 3 * 7
    assert {one.dtype for one in factors.values()} == {torch.float32}
    assert trainer.adapter is not None
    assert trainer.adapter.fixed() == base.keys()


def test_a_critic_of_its_own_gets_an_adapter_of_its_own(folder: Path, samples: list[Sample]) -> None:
    """value_model = policy: a second set of factors on the same base, which is shared; it learns values."""
    trainer, loaded = trainer_on(folder, {}, algorithm={"value_model": "policy", "epochs": 4})
    assert trainer.critic is not None
    trunk = trainer.critic.trunk
    assert trunk is not None
    theirs, ours = dict(trunk.named_parameters()), dict(loaded.model.model.named_parameters())
    assert all((one is ours[name]) is not (".lora_" in name) for name, one in theirs.items())
    assert all(one.requires_grad is (".lora_" in name) for name, one in theirs.items())
    losses = [trainer.step(samples)["loss/value_avg"] for _ in range(4)]
    assert losses[-1] < losses[0]


def test_dpos_reference_is_the_model_with_the_adapter_off(folder: Path) -> None:
    """The first loss is log 2, and after steps the reference is still the starting model; the loss falls."""
    rows = [Answer(prompt, completion) for prompt, completion in PAIRS]
    compared = [Compared(rows[0], Answer(rows[0].prompt_ids, rows[1].completion_ids))]
    spec = run_spec(
        folder,
        algorithm={"kind": "dpo"},
        optimiser={"learning_rate": RATE, "lora": {"rank": 4}, "gradient_checkpointing": True},
    )
    trainer = DpoTrainer(loaded_from(folder), spec)
    losses = [trainer.step(compared)["loss"] for _ in range(4)]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] < losses[0]


def test_without_peft_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'needs peft: pip install "trimtab-platform\[lora\]"'):
        trainer_on(folder, {})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"algorithm": {"kind": "trpo"}, "optimiser": {"lora": {}}}, "optimiser.lora is not for trpo"),
        (
            {"algorithm": {"kind": "trpo"}, "optimiser": {"gradient_checkpointing": True}},
            "optimiser.gradient_checkpointing is not for trpo",
        ),
        (
            {"algorithm": {"kind": "trpo", "kl": {"placement": "loss"}}},
            "trpo's step knows no loss of KL: kl.placement stays reward",
        ),
        (
            {"algorithm": {"kind": "trpo", "entropy_coefficient": 0.01}},
            "trpo's step knows no bonus of entropy: entropy_coefficient stays 0",
        ),
        (
            {"algorithm": {"kind": "ppo", "missing_end_replaces": True}, "sampling": {"fixed_length": True}},
            "no completion ends, so all scores would be the same",
        ),
        ({"optimiser": {"lora": {}, "train_embeddings": True}}, "train_embeddings is not for lora"),
        (
            {"optimiser": {"kind": "rmsprop", "eps_form": "tensorflow"}},
            "kind = rmsprop has none of its bias, take eps_form = torch",
        ),
        (
            {"algorithm": {"kind": "ppo", "preset": "openai-2019"}, "optimiser": {"kind": "rmsprop"}},
            "take eps_form = torch",
        ),
        ({"algorithm": {"kind": "ilql", "temperature": 2.0}}, "Extra inputs are not permitted"),
        ({"optimiser": {"lora": {"rank": 0}}}, "greater than or equal to 1"),
        ({"optimiser": {"lora": {"dropout": 1.0}}}, "less than 1"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, tables: dict[str, Any], message: str) -> None:
    """In the spec, before anything is loaded."""
    with pytest.raises(ValidationError, match=message):
        run_spec(folder, **tables)
