"""What fuzzing found, one test each: the smallest input, and what is answered now."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.demo.collect import read_prompts
from services.common.arrays import to_numpy
from services.common.comparisons import read
from services.common.errors import ConfigError, Corrupted, InvalidInput, TrimtabError
from services.common.failures import error_info, failed_payload
from services.common.jsonl import json_rows
from services.common.spec.load import load_toml
from services.common.spec.run import RunSpec
from services.common.spec.service import ServiceSpec
from services.common.stages import entry as entries
from services.common.stages.base import NewEntry
from services.learner.checkpoints import STATE_FILE, Checkpoints
from services.learner.kept_rollouts import keep_rollouts, read_rollouts
from services.learner.metrics import keep_metrics
from services.learner.prompts import load_prompts
from services.learner.rollouts import samples_of
from services.learner.watch.watch import WORST_FILE, Watch
from services.models.loading import load_causal
from services.models.reward_model import load_reward_model
from services.models.wire import manifest_of
from tests.fakes.tiny_models import make_tiny_causal, tiny_tokenizer
from tests.fakes.tiny_runs import model_spec
from tests.fuzz import groups
from trimtab.common.v1 import common_pb2 as common
from trimtab.rollout.v1.rollout_pb2 import RolloutGroup
from trimtab.weights.v1 import weights_pb2 as weights

DEEP = "[" * 100_000
LONG = "9" * 5_000
SPEC = RunSpec.model_validate(
    {"model": {"path": "/m"}, "data": {"prompts": "p"}, "reward_model": "rule:length:target=4"}
)


def file(folder: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        (f"a = {DEEP}", [], "nested less deeply"),
        (f"a = {LONG}", [], "expected valid TOML: Exceeds the limit"),
        ("", [f"server.port={DEEP}"], "expected a valid integer"),
        ("", [f"server.port={LONG}"], "--set server.port: Unable to parse input string as an integer"),
        ("a = [1]", [f"a.{LONG}=1"], "there is no such field"),
        ("a = [1]", ["a.\u0661=1"], "there is no such field"),
        ("", ["a\nb"], "--set a b: expected field=value"),
        ('"a\\nb" = 1', [], "a b: there is no such field"),
    ],
)
def test_a_configuration_is_refused_in_one_line(
    tmp_path: Path, text: str, overrides: list[str], told: str
) -> None:
    """Depth, numbers of thousands of digits, and names with line breaks are mistakes like any other."""
    with pytest.raises(ConfigError) as caught:
        load_toml(file(tmp_path, text, "a.toml"), ServiceSpec, overrides)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 1_001


def test_a_preset_that_is_no_name(tmp_path: Path) -> None:
    """A list in its place is told by the field itself."""
    text = '[model]\npath = "m"\n[data]\nprompts = "p"\n[algorithm]\npreset = ["trl"]\n'
    with pytest.raises(ConfigError, match=r"a\.toml:6: algorithm\.preset: "):
        load_toml(file(tmp_path, text, "a.toml"), RunSpec)


# ---------------------------------------------------------------- entries


def raw(**changed: bytes) -> entries.RawEntry:
    made = entries.encode(NewEntry(group_id="1-00000007-0", admission_number=7, payload=b"x", traceparent=""))
    fields = dict(zip(made[::2], made[1::2], strict=True))
    fields |= {name.encode(): value for name, value in changed.items()}
    return entries.RawEntry("1-0", [part for pair in fields.items() for part in pair], 1)


def test_an_admission_number_of_thousands_of_digits() -> None:
    """An entry that does not decode can still be buried, and its letter be read."""
    broken = raw(admission=LONG.encode())
    assert entries.lenient("learner", broken).admission_number == 0
    assert entries.read_letter("2-0", broken.fields).admission_number == 0


@pytest.mark.parametrize("attempts", [b"-1", b"0" * 20 + b"99999999999", LONG.encode()])
def test_attempts_that_nobody_counted(attempts: bytes) -> None:
    """They stand outside the checksum; what no queue has counted to is damage."""
    with pytest.raises(Corrupted):
        entries.decode("learner", raw(attempts=attempts))


def test_an_entry_whose_last_name_has_no_value() -> None:
    """Damaged, not an error of the decoder's own."""
    whole = raw()
    with pytest.raises(Corrupted, match="the entry has no payload"):
        entries.decode("learner", entries.RawEntry("1-0", whole.fields[:-1], 1))


def test_a_group_id_that_is_no_text() -> None:
    """The learner still gets a group that says what failed."""
    left = entries.lenient("learner", raw(group_id=b"a\xff"))
    failed = RolloutGroup.FromString(failed_payload(left, error_info(Corrupted("x"), origin="policy")))
    assert (failed.group_id, failed.failure.code) == ("a\N{REPLACEMENT CHARACTER}", "DATA_LOSS")


@pytest.mark.parametrize(("shape", "data"), [([0, 2**62], b""), ([1] * 65, b"1234")])
def test_a_shape_that_no_array_has(shape: list[int], data: bytes) -> None:
    """Its bytes are as many as it says, and still it is the caller's mistake, told by its field."""
    tensor = common.Tensor(dtype=common.DTYPE_INT32, shape=shape, data=data)
    with pytest.raises(
        InvalidInput, match=rf"^prompt: a shape of {len(shape)} dimensions that no array has$"
    ):
        to_numpy(tensor, field="prompt")


def _id(value: int) -> Callable[[RolloutGroup], None]:
    def change(group: RolloutGroup) -> None:
        group.completions[0].token_ids.data = struct.pack("<5i", 1, 2, 3, 4, value)

    return change


def _prompt(group: RolloutGroup) -> None:
    group.prompt.token_ids.data = struct.pack("<3i", 1, 2, 263)


def _sampling(**fields: float) -> Callable[[RolloutGroup], None]:
    def change(group: RolloutGroup) -> None:
        group.sampling.MergeFrom(common.SamplingOptions(**fields))  # type: ignore[arg-type]

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_id(-1), r"completions\[0\]: token ids from -1 to 4"),
        (_id(263), r"completions\[0\]: token ids from 1 to 263"),
        (_prompt, "prompt: token ids from 1 to 263"),
        (_sampling(temperature=float("nan")), "temperature nan"),
        (_sampling(temperature=-1.0), "temperature -1"),
        (_sampling(top_p=float("inf")), "top_p inf"),
    ],
)
def test_a_group_that_would_end_the_step(change: Callable[[RolloutGroup], None], told: str) -> None:
    """Ids beyond the vocabulary and a temperature that is no number are refused before they are trained on."""
    group = groups.group()
    assert len(samples_of(group, SPEC, vocabulary_size=263)) == 2
    change(group)
    with pytest.raises(Corrupted, match=told):
        samples_of(group, SPEC, vocabulary_size=263)


# ---------------------------------------------------------------- a run's own files


def test_lines_that_are_nested_too_deeply(tmp_path: Path) -> None:
    """InvalidInput with file and line, not the interpreter's own error."""
    path = file(tmp_path, f'{{"a": 1}}\n{DEEP}\n')
    with pytest.raises(InvalidInput, match=r"data\.jsonl:2: not JSON"):
        list(json_rows(path))


def test_metrics_that_a_disk_damaged(tmp_path: Path) -> None:
    """What cannot be read is dropped, the rest is kept: a resume must not end at a damaged line."""
    lines = [b'{"step": 1}', b'{"step": 1e999}', DEEP.encode(), b'\xff{"step": 2}', b"[]", b'{"step": 2}']
    path = file(tmp_path, b"\n".join(lines))
    keep_metrics(path, 5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("line", ["3", "{}", '{"step": 1e999, "gap": 1}', '{"step": 1, "gap": "x"}', DEEP])
def test_worst_samples_that_are_none(tmp_path: Path, line: str) -> None:
    """The file is for people: a resumed run begins it anew."""
    file(tmp_path, line, WORST_FILE)
    watch = Watch(SPEC, tmp_path)
    watch.resume([{"step": 5}])
    assert watch.warnings == []


@pytest.mark.parametrize("at", [-9, -60, -200])
def test_kept_rollouts_that_are_damaged(tmp_path: Path, at: int) -> None:
    """Corrupted, whichever of Parquet's readers stumbles."""
    path, group = tmp_path / "step-000001.parquet", groups.group()
    keep_rollouts(path, [(group, samples_of(group, SPEC))])
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
    with pytest.raises(Corrupted):
        read_rollouts(path)


@pytest.mark.parametrize("pickled", [b"\x80\x02.", b"\x80\x02h\xb6.", b"\x80\x02]R."])
def test_a_trainers_state_that_is_damaged(tmp_path: Path, pickled: bytes) -> None:
    """Corrupted, whatever torch's reader stumbles over."""
    folder = tmp_path / "step-000001"
    (folder / "trainer").mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    (folder / "trainer" / STATE_FILE).write_bytes(pickled)
    with pytest.raises(Corrupted, match="step-000001 cannot be read"):
        Checkpoints(tmp_path, keep=1).read(folder)


# ---------------------------------------------------------------- weights


def entry(**changed: Any) -> weights.TensorEntry:
    fields = {"name": "a", "dtype": common.DTYPE_FLOAT32, "shape": [2, 3], "digest": b"d" * 32}
    return weights.TensorEntry(**{**fields, **changed})


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({}, "names a tensor twice"),
        ({"name": "b", "shape": [-1, -2]}, "an impossible shape"),
        ({"name": "b", "shape": [1] * 65}, "an impossible shape"),
        ({"name": "b", "shape": [0, 2**62, 8]}, "an impossible shape"),
        ({"name": "b", "shape": [2**40, 2**40]}, "more than 16 TiB"),
        ({"name": "b", "digest": b"d"}, "a digest of 1 bytes"),
    ],
)
def test_a_manifest_that_no_weights_have(odd: dict[str, Any], told: str) -> None:
    """It is refused as it is read, before anything is allocated for it."""
    message = weights.WeightManifest(components=[weights.WeightComponent(tensors=[entry(), entry(**odd)])])
    with pytest.raises(InvalidInput, match=told):
        manifest_of(message)


# ---------------------------------------------------------------- data sets


def test_parquet_whose_metadata_is_damaged(tmp_path: Path) -> None:
    """InvalidInput with the file: its Thrift reader raises another error than the rest of it."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"chosen": "a", "rejected": "b"}]), path)
    whole = path.read_bytes()
    (size,) = struct.unpack("<I", whole[-8:-4])
    path.write_bytes(whole[: -8 - size] + b"\xff" * size + whole[-8:])
    with pytest.raises(InvalidInput, match=r"a\.parquet: after row 0: not readable as Parquet"):
        list(read(path))


@pytest.mark.parametrize("name", ["a\nb", LONG])
def test_a_field_name_that_is_a_text(tmp_path: Path, name: str) -> None:
    """What a row has instead of a known format is told in one line that can be read."""
    with pytest.raises(InvalidInput) as caught:
        list(read(file(tmp_path, json.dumps({name: 1}))))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_prompt_id_that_is_a_text(tmp_path: Path) -> None:
    """A prompt that is too long is named in one line that can be read."""
    path = file(tmp_path, json.dumps({"prompt": "x" * 50, "prompt_id": "a\n" * 900}))
    spec = SPEC.data.model_copy(update={"prompts": str(path)})
    with pytest.raises(InvalidInput, match=r"prompt a a a .* has 50 tokens") as caught:
        load_prompts(spec, tiny_tokenizer(), context_length=20, max_new_tokens=8)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("message", [{"role": "user", "content": {"a": 1}}, {"role": None, "content": "x"}])
def test_a_prompts_message_that_is_no_text(tmp_path: Path, message: dict[str, Any]) -> None:
    """InvalidInput with file and line."""
    with pytest.raises(InvalidInput, match=r"data\.jsonl:1: prompt: expected text or a list"):
        read_prompts(file(tmp_path, json.dumps({"prompt": [message]})))


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_causal(tmp_path_factory.mktemp("models") / "tiny", layers=1, width=8)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is more than the tensors of the files"),
        ({"vocab_size": 2**40}, "hidden_size times vocab_size is more than"),
        ({"intermediate_size": 2**40}, "hidden_size times intermediate_size is more than"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings is more than"),
        ({"head_dim": 2**62}, "head_dim is more than"),
        ({"head_dim": 2**12}, "num_attention_heads times head_dim times hidden_size is more than"),
        ({"intermediate_size": None}, "hidden_size times intermediate_size is more than"),
        ({"hidden_size": None}, "hidden_size times vocab_size is more than"),
        ({"hidden_size": -8}, "hidden_size: expected a whole number"),
        ({"hidden_size": "8"}, "hidden_size: expected a whole number"),
    ],
)
def test_a_configuration_that_claims_more_than_the_files_hold(
    model: Path, changed: dict[str, Any], told: str
) -> None:
    """It is refused before a layer is built or a byte allocated for it. None: not said, so it is the default."""
    path = model / "config.json"
    sound = path.read_text()
    config = json.loads(sound) | changed
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    try:
        with pytest.raises(InvalidInput, match=told):
            load_causal(model_spec(model))
    finally:
        path.write_text(sound)


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", DEEP), ("config.json", "[]"), ("tokenizer.json", DEEP)]
)
def test_a_models_file_that_cannot_be_read(model: Path, name: str, content: str) -> None:
    """One line, whatever its reader raises."""
    path = model / name
    sound = path.read_text()
    path.write_text(content)
    try:
        with pytest.raises(TrimtabError) as caught:
            load_causal(model_spec(model))
    finally:
        path.write_text(sound)
    assert "\n" not in str(caught.value) and str(model) in str(caught.value)


def test_a_tokenizer_whose_ids_no_vocabulary_has(model: Path) -> None:
    """Its reader would make room for all ids up to the largest."""
    path = model / "tokenizer.json"
    sound = path.read_text()
    table = json.loads(sound)
    table["added_tokens"][1]["id"] = 2**31 - 1
    path.write_text(json.dumps(table))
    try:
        with pytest.raises(InvalidInput, match=r"tokenizer\.json: an id is larger than any vocabulary"):
            load_causal(model_spec(model))
    finally:
        path.write_text(sound)


def test_a_model_that_brings_code(model: Path) -> None:
    """It is refused at once; nobody is asked at a terminal."""
    path = model / "config.json"
    sound = path.read_text()
    path.write_text(
        json.dumps(json.loads(sound) | {"model_type": "x", "auto_map": {"AutoConfig": "code.Config"}})
    )
    try:
        with pytest.raises(InvalidInput, match="could not be read"):
            load_causal(model_spec(model))
    finally:
        path.write_text(sound)


@pytest.mark.parametrize("text", ["\\ud800", "\\uDFFF", "a\\udc00b"])
def test_half_of_a_surrogate_pair_in_a_prompt(tmp_path: Path, text: str) -> None:
    """It was a TypeError of the tokenizer: now the line is named. A whole pair is a character."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine \\ud83d\\ude00"}\n' + f'{{"prompt": "{text}"}}\n')
    with pytest.raises(InvalidInput, match=r"prompts\.jsonl:2: a text has half of a surrogate pair"):
        list(json_rows(path))
    path.write_text('{"prompt": "fine \\ud83d\\ude00"}\n')
    assert [row["prompt"] for _, row in json_rows(path)] == ["fine \U0001f600"]


def test_samples_whose_numbers_have_zeros_before_them(tmp_path: Path) -> None:
    """sample000 is no sample0: it was a KeyError."""
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "q", "sample000": "a", "sample1": "b", "best": 0}\n')
    with pytest.raises(InvalidInput, match="sample0"):
        list(read(path))


def test_a_reward_models_settings_nested_deeply(tmp_path: Path) -> None:
    """They were a RecursionError of the JSON reader: no line for whoever named the folder."""
    (tmp_path / "reward.json").write_text('{"a":' * 100_000)
    (tmp_path / "reward_head.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInput, match="settings or head cannot be read"):
        load_reward_model(str(tmp_path))


def test_the_sound_ones_still_pass(model: Path) -> None:
    """What the tests above damage is accepted as it is."""
    assert load_causal(model_spec(model)).facts.vocabulary_size == 263
    assert entries.decode("learner", raw()).admission_number == 7
