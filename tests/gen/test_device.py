import pytest
import torch
from longtake.device import (
    choose_device,
    describe_attention,
    describe_devices,
    free_memory_bytes,
    group_backend,
    parse_device,
    parse_dtype,
    training_precision,
)
from longtake.errors import UserError
from longtake.kernels.backends.registry import backends


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGTAKE_DEVICE", raising=False)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_the_cpu_is_chosen_and_the_reason_said(no_gpu: None) -> None:
    choice = choose_device()
    assert (choice.device.type, choice.dtype) == ("cpu", torch.float32)
    assert choice.line == "device cpu, float32: no CUDA device is available"
    assert group_backend(choice.device) == "gloo"


def test_the_environment_wins_over_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_DEVICE", "cpu")
    choice = choose_device("cuda", dtype=torch.bfloat16)
    assert (choice.device.type, choice.dtype) == ("cpu", torch.bfloat16)
    assert "LONGTAKE_DEVICE" in choice.reason


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "no CUDA device"), ("gpu", "unknown device 'gpu'"), ("meta", "unknown device 'meta'")],
)
def test_a_device_that_cannot_be_had_is_refused(no_gpu: None, device: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_device(device)


def test_a_description_has_a_line_for_each_device_and_backend() -> None:
    assert describe_devices()[0].startswith("cpu: ")
    lines = describe_attention()
    assert any(line.endswith(": usable") for line in lines) and len(lines) == len(backends())


def test_devices_and_number_formats_are_chosen_by_words() -> None:
    assert [parse_device(word) for word in ("cpu", "cuda", "cuda:1", "mps", "auto", None)] == [
        *("cpu", "cuda", "cuda:1", "mps"),
        *(None, None),
    ]
    assert [parse_dtype(word) for word in ("float32", "bfloat16", "auto")] == [torch.float32, torch.bfloat16, None]
    for word in ("gpu", "cuda:\u00b2", "cuda:-1", "", "meta"):
        with pytest.raises(UserError, match="unknown device .*; allowed are auto, cpu"):
            parse_device(word)
    with pytest.raises(UserError, match="unknown dtype 'int8'; allowed are auto, float32"):
        parse_dtype("int8")
    assert (free_memory_bytes(torch.device("cpu")) or 0) > 2**20


@pytest.mark.gpu
def test_on_a_gpu_each_local_rank_has_its_own_in_half_precision() -> None:
    choice = choose_device(local_rank=0)
    assert str(choice.device) == "cuda:0" and choice.dtype in (torch.bfloat16, torch.float16)
    assert group_backend(choice.device) == "cpu:gloo,cuda:nccl"
    with pytest.raises(UserError, match="start at most"):
        choose_device(local_rank=torch.cuda.device_count())


def test_a_gpu_without_bfloat16_trains_in_float16(monkeypatch):
    for has, usual in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert training_precision(torch.device("cuda")) == usual
