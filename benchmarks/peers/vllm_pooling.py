"""vLLM's pooling runner for the processor. Turns the reward model's folder into one that vLLM knows, then serves it.

    python -m benchmarks.peers.vllm_pooling 8000 FOLDER_TO_WRITE

`POST /classify {"model": …, "input": [texts], "use_activation": false}` answers raw scores. vLLM batches continuously
by itself; its own advice for the processor is threads bound to cores.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.peers.scalar_model import HEAD_FILE, Settings

WEIGHTS_FILE = "model.safetensors"
NAME = "scored"


def converted(source: Path, target: Path) -> Path:
    """A LlamaForSequenceClassification of one label from backbone and head. Its head has no bias: it must be 0."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((source / "config.json").read_text())
    family = config["architectures"][0].removesuffix("Model")
    config |= {
        "architectures": [f"{family}ForSequenceClassification"],
        "num_labels": 1,
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
    }
    head = load_file(source / HEAD_FILE)
    if bool(head["bias"].any()):
        raise SystemExit("vllm_pooling: a head with a bias does not fit a sequence classifier")
    backbone = load_file(source / WEIGHTS_FILE)
    tensors: dict[str, torch.Tensor] = {f"model.{name}": tensor for name, tensor in backbone.items()}
    tensors["score.weight"] = head["weight"].to(next(iter(backbone.values())).dtype)
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*token*"):
        shutil.copy(file, target)
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    return target


def main() -> None:
    """Serve on the port of the command line until SIGTERM."""
    settings = Settings.from_environment()
    port, target = sys.argv[1:]
    folder = converted(Path(settings.folder), Path(target))
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: settings.threads]))
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "1"}
    flags = [
        *("--host", "127.0.0.1", "--port", port, "--served-model-name", NAME),
        *("--runner", "pooling", "--dtype", settings.dtype, "--max-model-len", str(settings.max_tokens)),
    ]
    # The module, not the command `vllm`: that one asks for a package of that name, and the processor's has another.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *flags]
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is meant


if __name__ == "__main__":
    main()
