"""Loading models and tokenizers: one place that turns a ModelSpec into something that runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from services.common.errors import InvalidInput, Mismatch, NotFound, TrimtabError
from services.common.spec.service import ModelSpec
from services.models import cut, gguf
from services.models.encoder_decoder import is_encoder_decoder, trial
from services.models.facts import (
    ModelFacts,
    chat_template_digest,
    context_of,
    model_digest,
    tokenizer_fingerprint,
)
from services.models.precision import torch_dtype
from services.models.trunk import halves_of, layers_of
from services.models.untrusted import check_folder, check_tokenizer

_HUB_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in eval mode, its tokenizer, and who they are."""

    model: Any
    tokenizer: Any
    facts: ModelFacts
    folder: str


def resolve(path: str) -> str:
    """A folder (or hub id) for what the user wrote: folder, .gguf file, package:<name>, hub id.

    The first three may end with `?layers=0-9`: see cut.py. Raises NotFound for a path that looks local
    and is not there.
    """
    whole, mark, layers = path.partition(cut.MARK)
    if mark:
        folder = Path(resolve(whole))
        if not folder.is_dir():
            raise InvalidInput(f"{path}: layers are taken from a model that is here, not from a hub")
        return str(cut.cut(folder, layers))
    if path.startswith(gguf.PACKAGE_PREFIX):
        return _packaged(path.removeprefix(gguf.PACKAGE_PREFIX))
    local = Path(path).expanduser()
    if local.is_file():
        if local.suffix != ".gguf":
            raise InvalidInput(f"{path}: a model is a folder, a .gguf file, package:<name> or a hub id")
        return str(gguf.converted(local))
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise NotFound(f"{path}: no config.json in this folder, so it is no Hugging Face model")
        return str(local)
    if path.startswith((".", "/", "~")) or path.endswith(".gguf") or path.count("/") > 1:
        raise NotFound(f"model {path}: no such file or folder")
    return path


def _packaged(package: str) -> str:
    """The model that an installed package carries: a Hugging Face folder, else a GGUF file."""
    try:
        weights = gguf.package_file(package, "*.safetensors")
    except NotFound:
        return str(gguf.converted(gguf.package_file(package, "*.gguf")))
    return str(weights.parent)


def torch_device(name: str) -> torch.device:
    """The device that a spec means; auto takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def set_threads(threads: int) -> None:
    """Use this many CPU threads; 0 takes all cores that this process may use."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def load_tokenizer(folder: str, revision: str | None = None) -> Any:
    """The tokenizer of a model. Raises NotFound when it cannot be had, InvalidInput when it cannot be read."""
    from transformers import AutoTokenizer

    if Path(folder).is_dir():
        check_tokenizer(Path(folder))
    return run_loader(folder, AutoTokenizer.from_pretrained, revision=revision)


def load_language_model(spec: ModelSpec) -> LoadedModel:
    """A causal or an encoder-decoder language model, as its config says. Otherwise as load_causal."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    folder = resolve(spec.path)
    config = run_loader(folder, AutoConfig.from_pretrained, revision=spec.revision)
    if not getattr(config, "is_encoder_decoder", False):
        return load_causal(spec)
    return _loaded(spec, folder, AutoModelForSeq2SeqLM)


def trainable_layers(path: str) -> int:
    """How many layers a learner finds in a language model, by its configuration alone: no weight is read.

    Raises NotFound, or InvalidInput for a form that it cannot train.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    folder = resolve(path)
    config = run_loader(folder, AutoConfig.from_pretrained)
    kind = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
    with torch.device("meta"), _readable(folder):
        model = kind.from_config(config, trust_remote_code=False)
        halves_of(model, 0)
        return len(layers_of(model))


def load_causal(spec: ModelSpec) -> LoadedModel:
    """A causal language model for scoring, generation or training: eval mode, dropout off.

    Raises NotFound for a model that is not there, InvalidInput for one that cannot be read.
    """
    from transformers import AutoModelForCausalLM

    return _loaded(spec, resolve(spec.path), AutoModelForCausalLM)


def _loaded(spec: ModelSpec, folder: str, loader: Any) -> LoadedModel:
    set_threads(spec.threads)
    tokenizer = load_tokenizer(folder, spec.revision)
    model, found = run_loader(
        folder,
        loader.from_pretrained,
        revision=spec.revision,
        dtype=torch_dtype(spec.dtype),
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):
        # transformers would go on with random numbers in their place.
        kind = "encoder-decoder" if is_encoder_decoder(model) else "causal"
        raise InvalidInput(f"model {folder} is no whole {kind} model: {missing[0]} is missing")
    model.to(torch_device(spec.device)).eval()
    switch_off_dropout(model)
    with _readable(folder):
        check_vocabulary(tokenizer, model)
        check_head(model)
        facts = facts_of(spec.path, model, tokenizer)
    return LoadedModel(model=model, tokenizer=tokenizer, facts=facts, folder=folder)


@contextmanager
def _readable(folder: str) -> Iterator[None]:
    """Around what is read out of a loaded model: a hostile configuration may have loaded and make no sense."""
    try:
        yield
    except TrimtabError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"model {folder} could not be read: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def facts_of(name: str, model: Any, tokenizer: Any) -> ModelFacts:
    """Identity of a language model together with its tokenizer."""
    config = model.config
    return ModelFacts(
        name=Path(name).name or name,
        architecture="encoder_decoder" if config.is_encoder_decoder else "causal",
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        chat_template_digest=chat_template_digest(tokenizer),
        model_digest=model_digest(serving_state(model)),
        context_length=context_of(config),
        vocabulary_size=int(model.get_output_embeddings().weight.shape[0]),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def serving_state(model: Any) -> dict[str, torch.Tensor]:
    """Names and tensors of the weights that are served; a tied tensor stands once."""
    seen: set[int] = set()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.named_parameters(remove_duplicate=True):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = tensor.detach()
    return state


def frozen_names(model: torch.nn.Module) -> frozenset[str]:
    """Names of the weights that no training changes."""
    return frozenset(name for name, weight in model.named_parameters() if not weight.requires_grad)


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Dropout stays off in training too: log-probs of the same weights must agree."""
    module: Any
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # of T5's attention
            module.dropout = 0.0
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout_rate"):
        if hasattr(getattr(model, "config", None), name):
            setattr(model.config, name, 0.0)


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Raises Mismatch when the tokenizer can make ids that the model has no embedding for."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise Mismatch(f"the tokenizer has {len(tokenizer)} tokens, the model embeds only {rows}")


def check_head(model: Any) -> None:
    """Raises InvalidInput unless the logits are the output embedding times the backbone's last states.

    Everything here takes them for that. Some models add a bias, a scale or a soft cap, and would be scored wrongly.
    """
    ids = torch.arange(3, device=model.device)[None]
    head = model.get_output_embeddings().weight
    with torch.inference_mode():
        if is_encoder_decoder(model):
            logits, states = trial(model, ids)
        else:
            logits = model(input_ids=ids, use_cache=False).logits
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits, plain = logits.float(), (states @ head.T).float()
    if logits.shape != plain.shape or not torch.allclose(
        logits, plain, rtol=1e-2, atol=1e-2 * float(plain.std())
    ):
        raise InvalidInput(
            f"{type(model).__name__}: its logits are not the output embedding times the last states "
            "(a bias, a scale or a soft cap), which is not supported"
        )


def encode_prompt(
    tokenizer: Any, *, messages: Sequence[dict[str, str]] | None = None, text: str | None = None
) -> list[int]:
    """Token ids of a prompt, ready to be answered: through the chat template when messages are given."""
    if messages:
        if not getattr(tokenizer, "chat_template", None):
            raise Mismatch("the prompt is a list of messages, but the model's tokenizer has no chat template")
        try:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidInput(f"the chat template refuses these messages: {error}") from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not text:
        raise InvalidInput("the prompt is empty", {"prompt": "token ids, messages or text"})
    return list(tokenizer(text)["input_ids"])


def run_loader(folder: str, loader: Any, **options: Any) -> Any:
    """Run a transformers loader quietly, turning its many errors into one line: NotFound or InvalidInput.

    A folder is looked at first (untrusted.py); code that it brings is never run.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    if Path(folder).is_dir():
        check_folder(Path(folder))
    # Without it transformers asks at a terminal, for 15 seconds, whether to run the folder's code.
    options.setdefault("trust_remote_code", False)
    if options.get("revision") is None:
        options.pop("revision", None)
    if not Path(folder).is_dir() and not _hub_can_be_reached():
        options["local_files_only"] = True
    try:
        return loader(folder, **options)
    except OSError as error:
        first = (str(error).strip().splitlines() or ["not found"])[0][:200]
        raise NotFound(f"model {folder} could not be loaded: {first}") from error
    except Exception as error:  # a hostile file brings whatever its reader stumbles over
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InvalidInput(f"model {folder} could not be read: {first}") from error


def _hub_can_be_reached() -> bool:
    """Whether the hub answers anything. Where it does not, its client would try again for minutes, in vain."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # by its HTTP library: no such name, refused, silent, or told to stay offline
        return False
    return True
