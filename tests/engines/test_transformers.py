"""transformers on attnkit: a decoder and encoders give what eager gives, and no mask is ever dropped."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.engine

torch = pytest.importorskip("torch", reason="torch is not installed here")
transformers = pytest.importorskip("transformers", reason="transformers is not installed here")

from attnkit import api  # noqa: E402
from attnkit.engines import transformers as on_attnkit  # noqa: E402
from attnkit.errors import UnsupportedError, UsageError  # noqa: E402
from attnkit.spec import Softmax  # noqa: E402

COMMON = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
LLAMA = COMMON | {"model_type": "llama", "num_key_value_heads": 2}
MISTRAL = COMMON | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 5}
BERT = COMMON | {"model_type": "bert"}


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that attnkit ran."""
    on_attnkit.register()
    ran: list[str] = []
    real = api.run

    def counted(call: Any, backend: str | None = None) -> Any:
        result = real(call, backend)
        ran.append(result.kernel)
        return result

    monkeypatch.setattr(api, "run", counted)
    return ran


def made(config: dict[str, Any], auto: str) -> tuple[Any, Any]:
    """The same random model on eager and on attnkit."""
    torch.manual_seed(0)
    eager = (
        getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(**config), attn_implementation="eager").eval()
    )
    ours = getattr(transformers, auto).from_config(
        transformers.AutoConfig.for_model(**config), attn_implementation="attnkit:TORCH_SDPA"
    )
    ours.load_state_dict(eager.state_dict())
    return eager, ours.eval()


def batch(side: str, lengths: tuple[int, ...] = (17, 9, 1)) -> tuple[Any, Any]:
    """Token ids and a padding mask: [3, 17]."""
    width = max(lengths)
    ids = torch.randint(2, 199, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    position = torch.arange(width)[None]
    length = torch.tensor(lengths)[:, None]
    mask = position < length if side == "right" else position >= width - length
    return ids, mask.long()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("config", [LLAMA, MISTRAL], ids=["gqa", "window"])
def test_decoder_gives_the_logits_of_eager_at_every_real_token(calls: list[str], config: dict[str, Any], side: str) -> None:
    eager, ours = made(config, "AutoModelForCausalLM")
    ids, mask = batch(side)
    with torch.inference_mode():
        expected, got = (m(input_ids=ids, attention_mask=mask).logits[mask.bool()] for m in (eager, ours))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert calls and all("scaled_dot_product" in kernel or "sdpa" in kernel.lower() for kernel in calls)


def test_decoder_generates_the_tokens_of_eager_with_its_cache(calls: list[str]) -> None:
    eager, ours = made(LLAMA, "AutoModelForCausalLM")
    ids, mask = batch("left")
    asked = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    expected, got = eager.generate(**asked), ours.generate(**asked)
    assert torch.equal(got, expected)
    assert len(calls) >= 24 * LLAMA["num_hidden_layers"] - 2
    assert len(set(got[:, 17:].flatten().tolist())) > 20, "tokens that do not vary would hide a wrong attention"


@pytest.mark.parametrize("name", ["attnkit", "attnkit:TORCH_SDPA"])
def test_encoder_gives_the_states_of_eager_padding_included(calls: list[str], name: str) -> None:
    eager, ours = made(BERT, "AutoModel")
    ours.set_attn_implementation(name)
    ids, mask = batch("right")
    with torch.inference_mode():
        expected, got = (m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (eager, ours))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == BERT["num_hidden_layers"]


def test_padding_reaches_no_result() -> None:
    _, ours = made(BERT, "AutoModel")
    ids, mask = batch("right")
    other = torch.where(mask.bool(), ids, (ids + 50) % 199)
    with torch.inference_mode():
        first, second = (ours(input_ids=i, attention_mask=mask).last_hidden_state[mask.bool()] for i in (ids, other))
        unmasked = ours(input_ids=other).last_hidden_state[mask.bool()]
    assert torch.equal(first, second)
    assert not torch.allclose(first, unmasked, atol=1e-2)


@pytest.mark.parametrize("name", ["attnkit", "attnkit:TORCH_SDPA"])
def test_a_real_encoder_gives_the_embeddings_of_eager(name: str) -> None:
    from tools.engines import equal_embeddings

    try:
        folder = equal_embeddings.model_folder()
    except UsageError as error:
        pytest.skip(str(error))
    found = equal_embeddings.compare(name, folder)
    assert found.calls == 6, "one call a layer"
    assert found.difference < equal_embeddings.BOUND
    assert found.without_mask > 0.05, "a mask that changes nothing could be dropped unseen"
    assert len(set(found.tokens)) > 4


def random_call(n: int, length: int) -> tuple[Any, Any, Any]:
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randn(2, heads, rows, 16, generator=draw) for heads, rows in ((4, n), (2, length), (2, length)))


def dense(query: Any, key: Any, value: Any, mask: Any) -> Any:
    """float64, keys hidden by `mask`; rows that see nothing are zero."""
    key, value = (x.double().repeat_interleave(2, 1) for x in (key, value))
    s = (query.double() @ key.transpose(-1, -2) * 16**-0.5).masked_fill(~mask, float("-inf"))
    return (torch.softmax(s, -1).nan_to_num(0.0) @ value).transpose(1, 2)


MASKS = {
    "causal over a cached context": lambda q, k: k <= q + 6,
    "window": lambda q, k: (k <= q + 6) & (k > q + 2),
    "two-sided window": lambda q, k: (k - q - 3).abs() <= 2,
    "chunks": lambda q, k: (k // 4 == (q + 6) // 4) & (k <= q + 6),
    "prefix seen by all, then causal": lambda q, k: (k < 8) | (k <= q + 6),
    "some queries see nothing": lambda q, k: (k <= q + 6) & (q % 3 != 0),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("additive", [False, True], ids=["bool", "additive"])
def test_any_mask_without_holes_is_honoured_exactly(name: str, additive: bool) -> None:
    query, key, value = random_call(7, 13)
    mask = MASKS[name](torch.arange(7)[:, None], torch.arange(13)[None, :]).expand(2, 1, 7, 13).clone()
    mask[1, ..., :2] = False  # left padding of the second sequence
    given = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if additive else mask
    out = on_attnkit.attend(query, key, value, given, Softmax(16**-0.5), True, "TORCH_SDPA")
    torch.testing.assert_close(out.double(), dense(query, key, value, mask), rtol=1e-5, atol=1e-5)


def test_a_changed_mask_is_read_again() -> None:
    query, key, value = random_call(7, 13)
    mask = torch.ones(2, 1, 7, 13, dtype=torch.bool)
    on_attnkit.attend(query, key, value, mask, Softmax(16**-0.5), False, "TORCH_SDPA")
    mask[:, :, :, 5:] = False
    out = on_attnkit.attend(query, key, value, mask, Softmax(16**-0.5), False, "TORCH_SDPA")
    torch.testing.assert_close(out.double(), dense(query, key, value, mask), rtol=1e-5, atol=1e-5)


def test_a_mask_with_holes_is_refused_by_a_backend_that_takes_no_mask_function() -> None:
    query, key, value = random_call(7, 13)
    mask = (torch.arange(13) % 2 == 0).expand(2, 1, 7, 13)
    with pytest.raises(UnsupportedError, match="mask_mod"):
        on_attnkit.attend(query, key, value, mask, Softmax(16**-0.5), False, "TORCH_SDPA")


def test_a_mask_with_holes_goes_through_a_mask_function() -> None:
    query, key, value = random_call(7, 13)
    mask = (torch.rand(2, 1, 7, 13, generator=torch.Generator().manual_seed(4)) < 0.6) | (torch.arange(13) == 3)
    out = on_attnkit.attend(query, key, value, mask, Softmax(16**-0.5), False, "FLEX_ATTENTION")
    torch.testing.assert_close(out.double(), dense(query, key, value, mask), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_honoured_is_refused() -> None:
    query, key, value = random_call(7, 13)
    softmax = Softmax(16**-0.5)
    with pytest.raises(UnsupportedError, match="adds a bias"):
        on_attnkit.attend(query, key, value, torch.full((2, 1, 7, 13), -1.5), softmax, False, None)
    with pytest.raises(UnsupportedError, match="the same for every head"):
        on_attnkit.attend(query, key, value, torch.ones(2, 4, 7, 13, dtype=torch.bool), softmax, False, None)
    with pytest.raises(UnsupportedError, match="is not said"):
        on_attnkit.attend(query, key, value, None, softmax, True, None)
