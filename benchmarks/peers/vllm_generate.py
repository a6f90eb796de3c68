"""vLLM's offline engine for the processor, asked over pipes: one line of JSON in, one out.

    python -m benchmarks.peers.vllm_generate MODEL_FOLDER eager|compiled

In: {"prompts": [[ids]], "lengths": [tokens of each completion]}. Out: {"seconds": …, "tokens": …}; first a line
{"ready": true}. In one process, so that it can be held still as a whole.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

MAX_TOKENS = 512
MAX_ROWS = 64


def engine(folder: str, mode: str) -> Any:
    """vLLM as its documentation sets it up for a processor: threads bound to cores, room for all requests."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    from vllm import LLM  # type: ignore[import-not-found]  # in .venv-peers/vllm alone

    return LLM(
        folder,
        dtype="bfloat16",
        max_model_len=MAX_TOKENS,
        max_num_seqs=MAX_ROWS,
        enforce_eager=mode == "eager",
        enable_prefix_caching=False,
        seed=0,
    )


def main() -> None:
    """Answer until stdin ends."""
    folder, mode = sys.argv[1:]
    # vLLM and its libraries talk on stdout; the answers keep that pipe to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model = engine(folder, mode)
    from vllm import SamplingParams

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    answer({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
        sampling = [
            SamplingParams(temperature=1.0, max_tokens=count, ignore_eos=True, detokenize=False, logprobs=0)
            for count in job["lengths"]
        ]
        began = time.perf_counter()
        outputs = model.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        answer({"seconds": seconds, "tokens": tokens})


if __name__ == "__main__":
    main()
