"""The fused decoder: the same numbers as the model's own pass, also after its weights changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Ministral3Config, Ministral3ForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

from services.models.fused import FusedDecoder, _CausalRow, fuse
from services.policy.engines.runners import FusedRunner, runner_for
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_gpt2
from tests.fakes.tiny_runs import loaded_from

IDS = torch.tensor([11, 40, 7, 99, 250, 3, 60])


def both(model: Any, fused: FusedDecoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Last states of the model's own pass and of the fused one."""
    with torch.inference_mode():
        own = model.base_model(input_ids=IDS[None], use_cache=False).last_hidden_state[0].float()
        return own, fused.states(IDS, torch.arange(len(IDS)), _CausalRow(fused)).float()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.06)])
def test_states_and_logits_are_the_models(tmp_path: Path, dtype: str, tolerance: float) -> None:
    """Within the dtype's rounding, for grouped heads, at every position."""
    model = loaded_from(make_tiny_causal(tmp_path / "m", width=32), dtype).model
    fused = fuse(model)
    assert fused is not None
    own, found = both(model, fused)
    torch.testing.assert_close(found, own, atol=tolerance, rtol=tolerance)
    with torch.inference_mode():
        states = own.to(model.dtype)
        expected = model.get_output_embeddings()(states)
        torch.testing.assert_close(fused.logits(states), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_written_in_place_are_followed(tmp_path: Path, dtype: str) -> None:
    """After a refresh the copies in oneDNN's order are the new weights': never an answer of old ones."""
    model = loaded_from(make_tiny_causal(tmp_path / "m", width=32), dtype).model
    fused = fuse(model)
    assert fused is not None
    before, _ = both(model, fused)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    fused.refresh()
    own, found = both(model, fused)
    # A state far out in bfloat16 may be off by more than the rest: the mean tells old weights from new ones.
    assert float((found - own).abs().mean()) < 0.05
    assert float((own - before).abs().mean()) > 0.1


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    """A GPT-2 has another form; a Llama that scales its states computes something else: neither is fused."""
    assert fuse(loaded_from(make_tiny_gpt2(tmp_path / "gpt2")).model) is None
    model = loaded_from(make_tiny_causal(tmp_path / "m", width=32)).model
    model.base_model.layers[0].register_forward_hook(lambda _module, _inputs, output: output * 1.5)
    assert fuse(model) is None


def test_layers_that_attend_in_another_way_are_left_alone() -> None:
    """SmolLM3's layers without a rotation, and Ministral 3's queries that are scaled far beyond a trial's positions."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    # So small weights that a trial finds nothing.
    still = {"vocab_size": 20, "initializer_range": 1e-4, "pad_token_id": 0, **small}
    assert fuse(SmolLM3ForCausalLM(SmolLM3Config(num_hidden_layers=4, **still))) is None
    assert fuse(Ministral3ForCausalLM(Ministral3Config(num_hidden_layers=1, head_dim=4, **still))) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["plain", "biased"])
def test_a_step_in_one_call_is_the_same_to_the_last_bit(tmp_path: Path, kind: str, dtype: str) -> None:
    """Through the cache, as rows join, end and go on, and after weights changed: as with a call for each operation."""
    model = loaded_from(make_tiny_causal(tmp_path / "m", width=64), dtype).model
    if kind == "biased":
        for layer in model.base_model.layers:
            for product in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj):
                bias = torch.linspace(-1, 1, product.out_features, dtype=product.weight.dtype)
                product.bias = torch.nn.Parameter(bias)
    runners = [runner_for(model) for _ in range(2)]
    one, each = runners
    assert isinstance(one, FusedRunner)
    assert isinstance(each, FusedRunner)
    if not one._decoder.steps:
        pytest.skip("this processor, or this torch, has no products in oneDNN's order")
    each._decoder._step = None
    assert not each._decoder.steps
    with torch.inference_mode():
        for changed in (False, True):
            if changed:
                for parameter in model.parameters():
                    parameter.mul_(1.25)
            for runner in runners:
                runner.refresh()
                runner.reserve(4, [(6, 9)] * 4)
                runner.join([([3, 9, 27], []), ([5, 25, 125, 4, 20], [1])], [2, 1])
            each._decoder._step = None
            for token in range(4):
                ids = torch.tensor([7, 11, 13, 17][: one.cache.rows]) + token
                found, expected = (runner.step(ids) for runner in runners)
                assert torch.equal(found, expected)
                if token == 1:
                    for runner in runners:
                        runner.drop(0)
                        runner.join([([2, 4, 8], [])], [2])


def test_where_torch_has_no_such_interpreter_each_operation_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch that cannot compile the step serves all the same."""

    def script(_function: Any) -> Any:
        raise RuntimeError("no TorchScript\nhere")

    monkeypatch.setattr(torch.jit, "script", script)
    runner = runner_for(loaded_from(make_tiny_causal(tmp_path / "m", width=32), "bfloat16").model)
    assert isinstance(runner, FusedRunner)
    assert not runner._decoder.steps
    with torch.inference_mode():
        runner.reserve(1, [(3, 2)])
        runner.join([([3, 9, 27], [])], [1])
        assert torch.isfinite(runner.step(torch.tensor([5]))).all()
