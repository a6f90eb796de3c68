"""Between the contract's prompts, sampling options and completions and the engine's requests and drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from services.common import mask_bits
from services.common.arrays import from_numpy, set_array, to_vector
from services.common.errors import InvalidInput
from services.common.spec.run import LOWEST_TEMPERATURE
from services.common.validation import Violations, token_ids
from services.models.manifest import Version
from services.models.wire import version_message
from services.policy.engines.base import Draft, Finish, Ids, Request, Sampling
from services.policy.generation import Policy
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1 import rollout_pb2 as rollout

_FINISH: dict[Finish | None, common.FinishReason.ValueType] = {
    None: common.FINISH_REASON_UNSPECIFIED,
    "stop": common.FINISH_REASON_STOP,
    "length": common.FINISH_REASON_LENGTH,
}
# A seed is drawn from with 64 bits; everything above is refused by the wire already.
_DEFAULT_NEW_TOKENS = 128


def sampling_of(options: common.SamplingOptions, *, most_new_tokens: int) -> Sampling:
    """The engine's sampling for the wire's. Raises InvalidInput for values that mean nothing."""
    found = Violations()
    found.check(
        np.isfinite(options.temperature)
        # It comes as float32, as which the lowest is a little lower.
        and (options.temperature == 0 or options.temperature >= float(np.float32(LOWEST_TEMPERATURE))),
        "sampling.temperature",
        f"expected 0, or {LOWEST_TEMPERATURE:g} or more, got {options.temperature:g}",
    )
    found.check(0 <= options.top_p <= 1, "sampling.top_p", f"expected 0 to 1, got {options.top_p:g}")
    wanted = options.max_new_tokens or _DEFAULT_NEW_TOKENS
    found.check(
        wanted <= most_new_tokens,
        "sampling.max_new_tokens",
        f"expected at most {most_new_tokens}, got {wanted}",
    )
    found.check(
        options.min_new_tokens <= wanted,
        "sampling.min_new_tokens",
        f"expected at most max_new_tokens = {wanted}, got {options.min_new_tokens}",
    )
    found.check(all(options.stop), "sampling.stop", "expected stop strings that are not empty")
    found.raise_any()
    return Sampling(
        temperature=options.temperature,
        top_p=options.top_p or 1.0,
        top_k=options.top_k,
        max_new_tokens=wanted,
        min_new_tokens=options.min_new_tokens,
        stop=tuple(options.stop),
        seed=options.seed,
    )


def prompt_ids(prompt: rollout.Prompt, policy: Policy, field: str) -> Ids:
    """The prompt's ids, or those of its messages or text, [length] int32, checked against the model."""
    ids = token_ids(prompt.token_ids, f"{field}.token_ids")
    if len(ids) == 0:
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        if not messages and not prompt.text:
            raise InvalidInput(
                f"{field}: the prompt is empty", {field: "expected token ids, messages or text"}
            )
        ids = policy.encode(messages=messages, text=prompt.text)
    check_prompt(ids, policy, field)
    return ids


def check_prompt(ids: Ids, policy: Policy, field: str) -> None:
    """Raises InvalidInput for ids that the model cannot be given, or that leave no room for an answer."""
    facts, found = policy.facts, Violations()
    found.ids(ids, f"{field}.token_ids", vocabulary_size=facts.vocabulary_size)
    found.check(
        not facts.context_length or len(ids) < facts.context_length,
        f"{field}.token_ids",
        f"expected fewer than the context's {facts.context_length} tokens, got {len(ids)}",
    )
    found.raise_any()


def draft_of(completion: rollout.Completion) -> Draft:
    """A completion as far as another replica got with it. Raises InvalidInput when its arrays do not fit."""
    if not completion.token_ids.data:
        return Draft()
    if completion.finish_reason not in _FINISH.values():
        raise InvalidInput(f"completion.finish_reason: {completion.finish_reason} is not known here")
    draft = Draft(
        token_ids=token_ids(completion.token_ids, "completion.token_ids"),
        raw_logprobs=to_vector(completion.raw_logprobs, "float32", field="completion.raw_logprobs"),
        sampled_logprobs=to_vector(
            completion.sampled_logprobs, "float32", field="completion.sampled_logprobs"
        ),
        masks=_masks_of(completion),
        finish=next(name for name, number in _FINISH.items() if number == completion.finish_reason),
    )
    if not {len(draft.raw_logprobs), len(draft.sampled_logprobs)} <= {0, len(draft.token_ids)}:
        raise InvalidInput(
            f"completion: {len(draft.token_ids)} tokens have {len(draft.raw_logprobs)} raw and "
            f"{len(draft.sampled_logprobs)} sampled log-probs"
        )
    return draft


def _masks_of(completion: rollout.Completion) -> mask_bits.MaskBits | None:
    if not completion.action_masks:
        return None
    length = completion.token_ids.shape[0]
    return mask_bits.from_wire(completion.action_masks, length, field="completion.action_masks")


def write_draft(
    completion: rollout.Completion, draft: Draft, text: str, made_by: Version | Sequence[tuple[int, Version]]
) -> None:
    """Write a draft into a completion in place; `made_by` drew the tokens that were not there yet.

    Several versions come with the place where each one's tokens begin. Weights that drew no token made nothing: a
    draft that is handed back untouched stays without a span.
    """
    before = completion.token_ids.shape[0] if completion.token_ids.shape else 0
    if isinstance(made_by, Version):
        made_by = [(before, made_by)] if len(draft.token_ids) > before else []
    for start, version in made_by:
        last = completion.versions[-1].version.digest if completion.versions else None
        if last != version.digest:
            completion.versions.append(rollout.VersionSpan(version=version_message(version), start=start))
    set_array(completion.token_ids, draft.token_ids)
    set_array(completion.raw_logprobs, draft.raw_logprobs)
    set_array(completion.sampled_logprobs, draft.sampled_logprobs)
    completion.action_masks = b"" if draft.masks is None else mask_bits.to_wire(draft.masks)
    completion.finish_reason = _FINISH[draft.finish]
    completion.text = text


def completion_of(
    draft: Draft, text: str, made_by: Version | Sequence[tuple[int, Version]]
) -> rollout.Completion:
    """A new completion for an answer."""
    completion = rollout.Completion()
    write_draft(completion, draft, text, made_by)
    return completion


def requests_for(prompts: Sequence[Ids], sampling: Sampling, count: int) -> list[Request]:
    """`count` completions of each prompt. Prompts of one call draw differently: the index goes through all."""
    return [
        Request(prompt_ids=ids, sampling=sampling, index=at * count + nth)
        for at, ids in enumerate(prompts)
        for nth in range(count)
    ]


class TextSoFar:
    """Text of a completion piece by piece: the pieces, joined, are the text of the whole.

    A token by itself is not: it may be half a character, and many tokenizers drop a leading space.
    """

    def __init__(self, decode: Callable[[Ids], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._text = ""

    def after(self, token: int) -> str:
        """What this token adds; nothing while it ends within a character."""
        self._ids.append(token)
        text = self._decode(np.array(self._ids, np.int32))
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._added(text)

    def rest(self) -> str:
        """What was held back to the end."""
        return self._added(self._decode(np.array(self._ids, np.int32)))

    def _added(self, text: str) -> str:
        new, self._text = text[len(self._text) :], text
        return new


def ids_message(ids: Ids) -> common.Tensor:
    """Token ids on the wire, [length] int32."""
    return from_numpy(ids)
