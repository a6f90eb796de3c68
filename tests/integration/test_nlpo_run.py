"""NLPO over the services: real gRPC, a real queue server, a mask model that the policy engine holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import Mismatch
from services.common.mask_bits import allows
from services.common.spec.decoding import DecodingSpec
from services.learner.kept_rollouts import read_rollouts, rollout_file
from services.learner.replay import recorded, replay
from services.learner.sample import Sample
from services.models.action_masks import nucleus, packed
from services.models.loading import serving_state
from services.models.manifest import Version, entries_of, whole_digest
from services.policy.engines.decoding import decoding_of
from services.policy.engines.transformers_engine import TransformersEngine
from services.policy.generation import Policy
from tests.fakes.service_runs import run_over_services
from tests.fakes.small_runs import BATCH, make_files, rows_of, small_spec
from tests.fakes.tiny_runs import loaded_from

TOP_P, MIN_TOKENS = 0.8, 2
SETTINGS = (
    "algorithm.kind=nlpo",
    f"algorithm.top_p={TOP_P}",
    f"algorithm.min_tokens={MIN_TOKENS}",
    "algorithm.refresh_every=2",
    "algorithm.epochs=1",
    "algorithm.importance_sampling.mode=token_truncate",
    "optimiser.learning_rate=0.01",
    "sampling.temperature=0.9",
    "rollout.keep=true",
    "checkpoint.every_steps=1",
    "checkpoint.keep=9",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps, interrupted after the third. One update a step."""
    files = make_files(tmp_path_factory.mktemp("files"))
    for steps in (3, 4):
        spec = small_spec(files, *SETTINGS, f"steps={steps}")
        run_over_services(spec, files / "run", resume=steps == 4)
    (files / "run" / "run.toml").write_text((files / "run.toml").read_text())
    return files / "run"


def rollouts_of(out: Path, step: int) -> list[Sample]:
    found = read_rollouts(rollout_file(out / "rollouts", step))
    assert len(found) == BATCH
    return found


def nuclei(folder: Path, sample: Sample) -> np.ndarray:
    """Of the model in a folder, before each token of the completion, packed."""
    ids = torch.tensor(np.concatenate([sample.prompt_ids, sample.completion_ids]), dtype=torch.long)[None]
    with torch.inference_mode():
        logits = loaded_from(folder).model(input_ids=ids).logits[0, len(sample.prompt_ids) - 1 : -1]
    return packed(nucleus(logits, top_p=TOP_P, min_tokens=MIN_TOKENS)).numpy()


def test_no_masked_token_is_ever_sampled(out: Path) -> None:
    """Every token lies within the mask that travelled with it, and the masks do mask; the metric says how much."""
    for step in range(1, 5):
        masked = []
        for sample in rollouts_of(out, step):
            assert sample.action_masks is not None
            assert allows(sample.action_masks, sample.completion_ids).all()
            masked += (263 - np.unpackbits(sample.action_masks, axis=1).sum(1)).tolist()
        share = recorded(out, step)["policy/masked_share"]
        assert share == pytest.approx(np.mean(masked) / 263)
        assert 0.1 < share < 1


def test_the_mask_is_refreshed(out: Path) -> None:
    """Masks of steps 1 and 2 are nuclei of the starting model; of 3 and 4, after a resume too, of step 2's policy."""
    second, start = out / "checkpoints" / "step-000002" / "model", out.parent / "model"
    for step, of, other in ((1, start, second), (2, start, second), (3, second, start), (4, second, start)):
        samples = rollouts_of(out, step)
        for sample in samples:
            np.testing.assert_array_equal(sample.action_masks, nuclei(of, sample))
        assert any(not np.array_equal(one.action_masks, nuclei(other, one)) for one in samples)
    assert [row["policy/mask_version"] for row in rows_of(out)] == [0, 0, 1, 1]


def test_sampler_and_learner_agree_on_the_masked_policy(out: Path) -> None:
    """The ratio of the learner's to the engine's probability is 1 in the first epoch, within the engine's error."""
    for row in rows_of(out):
        assert row["sampling/logprob_difference"] < 2e-5
        for bound in ("min", "max"):
            assert row[f"sampling/importance_sampling_ratio/{bound}"] == pytest.approx(1, abs=1e-4)
        assert row["val/ratio"] == pytest.approx(1, abs=1e-6)
    assert rows_of(out)[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(rows_of(out)[3]["objective/kl"]) > 1e-3


def test_the_runs_model_is_found_by_what_was_published(out: Path) -> None:
    """published.json names the bytes of model/, which a policy that masks serves too, beside others."""
    published = json.loads((out / "published.json").read_text())
    loaded = loaded_from(out / "model")
    assert published["digest"] == whole_digest(entries_of(serving_state(loaded.model)))
    decoding = decoding_of(loaded, DecodingSpec.model_validate({"mask": {}}))
    policy = Policy(TransformersEngine(loaded, decoding=decoding), loaded.tokenizer)
    assert policy.version.digest != published["digest"]
    policy.require(Version(1, 4, published["digest"]))
    with pytest.raises(Mismatch):
        policy.require(Version(1, 4, "0" * 64))


def test_a_step_is_done_again_from_its_kept_masks(out: Path) -> None:
    """`trimtab replay` of the last step: every figure that does not depend on a clock, also those of the masks."""
    then, now = recorded(out, 4), replay(out, 4)
    names = [name for name in now if name in then and not name.startswith("time/")]
    assert "policy/masked_share" in names
    assert [name for name in names if then[name] != now[name]] == []
