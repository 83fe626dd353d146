"""Codecs of updates against numbers worked out by hand, numpy's and torch's own 16 bits, and the papers' laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import compression
from fedsim.compression import Codec, HalfCodec, Key, QsgdCodec, SignCodec, TopKCodec
from fedsim.compression.halves import packed, unpacked
from fedsim.config import RunConfig, TopKCompression
from fedsim.training.clients.coding import Coding, encoded
from fedsim.training.clients.methods import Received
from fedsim.types import Float32, Task

KEY = Key(seed=1, client=2, task=3)
NAN = math.nan


def vector(*values: float) -> Float32:
    return np.array(values, np.float32)


def decoded(codec: Codec, vector_P: Float32, key: Key = KEY) -> Float32:
    data_B = codec.encode(vector_P, key)
    assert data_B.dtype == np.uint8 and data_B.shape == (codec.n_bytes,)
    out_P = np.full(codec.n_parameters, NAN, np.float32)
    codec.decode(data_B, out_P)
    return out_P


def normals(n: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


# ------------------------------------------------------------------------------------------------ 16 bits


def test_halves_by_hand() -> None:
    # float16 has 10 bits behind the point: between 2048 and 4096 whole even numbers; ties go to the even neighbour.
    assert decoded(HalfCodec(4, "float16"), vector(2049, 2051, 0.1, -65504)).tolist() == [
        2048.0, 2052.0, 0.0999755859375, -65504.0,
    ]  # fmt: skip
    # bfloat16 has 7: between 256 and 512 even ones; 257 is a tie, and 256 the even neighbour.
    assert decoded(HalfCodec(4, "bfloat16"), vector(257, 259, 1e38, -0.0)).tolist() == [
        256,
        260,
        2.0**126 * 1.171875,
        0,
    ]
    assert HalfCodec(4, "bfloat16").n_bytes == 8


def test_halves_are_those_of_numpy_and_torch() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint32)
    values_P = bits.view(np.float32)
    tiny = np.abs(values_P) < 6e4  # float16's range; bfloat16 has float32's
    theirs = torch.from_numpy(values_P.copy()).bfloat16()
    stays = np.isfinite(values_P) & torch.isfinite(theirs).numpy()
    for form, keep, expected in (
        ("float16", tiny, values_P[tiny].astype(np.float16).astype(np.float32)),
        ("bfloat16", stays, theirs.float().numpy()[stays]),
    ):
        ours = unpacked(packed(values_P[keep], form), form)
        assert np.array_equal(ours.view(np.uint32), expected.view(np.uint32))


def test_nan_and_infinity_stay_and_halves_unpack_to_what_packs_to_them() -> None:
    odd = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    every = np.arange(2**16, dtype=np.uint16)
    for form in ("float16", "bfloat16"):
        assert np.isnan(unpacked(packed(odd[:3], form), form)).all()
        assert unpacked(packed(odd[3:], form), form).tolist() == [math.inf, -math.inf]
        numbers = every[~np.isnan(unpacked(every, form))]
        assert np.array_equal(packed(unpacked(numbers, form), form), numbers)


@pytest.mark.parametrize(("form", "value", "text"), [("float16", 65520.0, "65,504"), ("bfloat16", 3.4e38, "3.39e38")])
def test_what_is_beyond_the_range_is_refused(form: Any, value: float, text: str) -> None:
    with pytest.raises(OverflowError, match=f"is beyond {form}, which ends at {text}"):
        packed(vector(*[0.0] * 40_000, value), form)


# ------------------------------------------------------------------------------------------------ top-k


def test_top_k_by_hand() -> None:
    # 7 values, ceil(.4 x 7) = 3 of them: -5, 4 and the first of the three 3s; a bit a parameter is one byte.
    codec = TopKCodec(7, 0.4)
    values_P = vector(3, -5, 0, -3, 4, 3, 1)
    assert (codec.n_kept, codec.n_bytes) == (3, 1 + 3 * 4)
    assert decoded(codec, values_P).tolist() == [3, -5, 0, 0, 4, 0, 0]
    assert codec.encode(values_P, KEY)[0] == 0b11001000
    # 1 of 100: its position as uint32 takes less than 13 bytes of bits.
    sparse = TopKCodec(100, 0.001)
    values_P = np.zeros(100, np.float32)
    values_P[77] = -2.5
    data = sparse.encode(values_P, KEY)
    assert sparse.n_bytes == 8 and data[:4].view("<u4")[0] == 77 and data[4:].view("<f4")[0] == -2.5
    assert np.array_equal(decoded(sparse, values_P), values_P)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.floats(0.001, 0.999), st.integers(0, 2**32), st.booleans())
def test_top_k_is_a_contraction(n: int, fraction: float, seed: int, is_tied: bool) -> None:
    codec, values_P = TopKCodec(n, fraction), normals(n, seed)
    if is_tied:
        values_P = np.round(values_P)
    sent_P = decoded(codec, values_P)
    assert np.count_nonzero(sent_P) <= codec.n_kept
    kept = sent_P != 0
    assert np.array_equal(sent_P[kept], values_P[kept])
    left, whole = np.square(values_P - sent_P, dtype=np.float64).sum(), np.square(values_P, dtype=np.float64).sum()
    assert left <= (1 - codec.n_kept / n) * whole * (1 + 1e-12)


# ------------------------------------------------------------------------------------------------ a bit


def test_sign_by_hand() -> None:
    codec = SignCodec(10)
    values_P = vector(1, -2, 3, 0, -4, 0.5, 0.5, -1, -2, 6)  # magnitudes sum to 20
    assert codec.n_bytes == 4 + 2
    assert decoded(codec, values_P).tolist() == [2, -2, 2, 2, -2, 2, 2, -2, -2, 2]
    assert codec.encode(values_P, KEY)[4:].tolist() == [0b10110110, 0b01000000]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(0, 2**32))
def test_sign_is_the_contraction_of_the_paper(n: int, seed: int) -> None:
    values_P = normals(n, seed)
    left = np.square(values_P - decoded(SignCodec(n), values_P), dtype=np.float64).sum()
    whole, ones = np.square(values_P, dtype=np.float64).sum(), np.abs(values_P).sum(dtype=np.float64)
    assert left == pytest.approx((1 - ones**2 / (n * whole)) * whole, rel=1e-4, abs=1e-6)


def test_long_vectors_take_several_blocks() -> None:
    n = 2**18 + 70_001
    values_P = normals(n)
    scale = np.float32(np.abs(values_P.astype(np.float64)).mean())
    np.testing.assert_allclose(decoded(SignCodec(n), values_P), np.where(values_P >= 0, scale, -scale), rtol=1e-6)
    for bucket in (512, 1000, None):
        codec = QsgdCodec(n, 8, bucket)
        sent_P = decoded(codec, values_P)
        edges = range(0, n, bucket or n)
        norms = np.concatenate(
            [np.full(v.size, np.linalg.norm(v)) for e in edges for v in [values_P[e : e + (bucket or n)]]]
        )
        assert (np.abs(sent_P - values_P) <= norms / codec.levels * 1.0001).all()


# ------------------------------------------------------------------------------------------------ QSGD


def test_qsgd_by_hand() -> None:
    # Two buckets. 2 bits: one level. A single value is its bucket's norm, level 1 for certain; zeros are level 0.
    codec = QsgdCodec(6, 2, 3)
    values_P = vector(0, -4, 0, 0, 0, 2.5)
    assert codec.n_bytes == 4 * 2 + 2
    assert decoded(codec, values_P).tolist() == values_P.tolist()
    codes = codec.encode(values_P, KEY)[8:]  # l sign(x) + 1: 1 0 1 1 | 1 2 and zeros
    assert codes.tolist() == [0b01_00_01_01, 0b01_10_00_00]
    # 4 bits: seven levels. (3, 4) has norm 5: 7 x 3/5 = 4.2 and 7 x 4/5 = 5.6, so levels 4 or 5, and 5 or 6.
    codec = QsgdCodec(2, 4, None)
    seen = {tuple(np.rint(decoded(codec, vector(3, -4), Key(0, 0, task)) * 7 / 5).tolist()) for task in range(200)}
    assert seen == {(4, -5), (4, -6), (5, -5), (5, -6)}


@pytest.mark.parametrize(("bits", "bucket"), [(2, 16), (4, None), (8, 10)])
def test_qsgd_is_unbiased_with_the_variance_of_the_paper(bits: int, bucket: int | None) -> None:
    n, n_draws = 64, 4000
    codec, values_P = QsgdCodec(n, bits, bucket), normals(n, 5)
    sent = np.stack([decoded(codec, values_P, Key(9, 4, task)) for task in range(n_draws)]).astype(np.float64)
    size = bucket or n
    norms = np.concatenate([np.full(v.size, np.linalg.norm(v)) for v in np.split(values_P, range(size, n, size))])
    share = np.abs(values_P) / norms * codec.levels % 1.0
    spread = norms / codec.levels * np.sqrt(share * (1 - share))  # of a draw: a Bernoulli variable's
    error = np.abs(sent.mean(axis=0) - values_P)
    assert (error <= 5 * spread / math.sqrt(n_draws) + 1e-6).all()
    per_draw = np.square(sent - values_P).sum(axis=1).mean()
    assert per_draw == pytest.approx(np.square(spread).sum(), rel=0.05)
    bound = min(size / codec.levels**2, math.sqrt(size) / codec.levels) * np.square(values_P).sum()
    assert per_draw <= bound, "lemma 3.1"


def test_qsgd_draws_by_seed_client_and_task_alone() -> None:
    codec, values_P = QsgdCodec(100, 4, 10), normals(100)
    first = codec.encode(values_P, Key(1, 2, 3))
    codec.encode(values_P, Key(1, 2, 4))
    assert np.array_equal(first, QsgdCodec(100, 4, 10).encode(values_P, Key(1, 2, 3)))
    for other in (Key(1, 2, 4), Key(1, 3, 3), Key(2, 2, 3)):
        assert not np.array_equal(first, codec.encode(values_P, other))


# ------------------------------------------------------------------------------------------------ the client's part


def received(task: int, state_S: Float32 | None, n: int) -> Received:
    times = (NAN,) * 6
    return Received(
        Task(task, 5, 0, 1, 1, 0, 0.1, *times, False, True), np.ones(n, np.float32), np.empty((0, n)), state_S
    )


@pytest.mark.parametrize("codec", [TopKCodec(50, 0.1), SignCodec(50)], ids=["top-k", "sign"])
@pytest.mark.parametrize("gives_models", [False, True])
def test_what_was_sent_and_what_is_left_sum_to_what_was_trained(codec: Codec, gives_models: bool) -> None:
    coding = Coding(codec, seed=1, error_feedback=True, gives_models=gives_models)
    state, trained, sent = None, np.zeros(50), np.zeros(50)
    for task in range(20):
        update_P = normals(50, task)
        trained += update_P
        out_GP = (update_P + np.float32(1.0) if gives_models else update_P)[None].copy()
        state = coding.finish(received(task, state, 50), np.ones(50, np.float32), out_GP[0])
        part_P = np.empty(50, np.float32)
        codec.decode(encoded(out_GP, codec.n_bytes)[0], part_P)
        sent += part_P
    assert state is not None and np.abs(state).max() > 0.1
    np.testing.assert_allclose(sent + state, trained, atol=2e-5)


def test_without_error_feedback_nothing_is_kept() -> None:
    coding = Coding(TopKCodec(50, 0.1), seed=1, error_feedback=False, gives_models=False)
    assert coding.n_values == 0
    assert coding.finish(received(0, None, 50), np.ones(50, np.float32), normals(50)) is None


def test_kinds_are_built_from_configurations(make_config: Any) -> None:
    config: RunConfig = make_config()
    assert compression.build(config.compression.updates, 10) is None
    codec = compression.build(TopKCompression(kind="top-k", fraction=0.5), 10)
    assert isinstance(codec, TopKCodec) and codec.n_kept == 5
