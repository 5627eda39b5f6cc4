"""Products of int8 matrices against NumPy's integers, and against float64 within the rounding."""

import numpy as np
import pytest

from lmsmith.generate.int8 import linear_int8


def product(
    matrix: np.ndarray,
    x: np.ndarray,
    *,
    scale: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    before: np.ndarray | None = None,
) -> np.ndarray:
    """`linear_int8`; with `before` added to it."""
    (N, D), B = matrix.shape, len(x)
    y = np.zeros((B, N), np.float32) if before is None else before.copy()
    products = y if before is None else np.zeros_like(y)
    scale = np.ones(N, np.float32) if scale is None else scale
    bias = np.zeros(0, np.float32) if bias is None else bias
    # Scratch may be wider than the matrix, and hold old numbers.
    vectors, steps = np.full((B, D + 32), 77, np.int16), np.full(B, 7, np.float32)
    linear_int8(matrix, scale, bias, x, B, vectors, steps, products, y, before is not None)
    return y


def drawn(N: int, D: int, B: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(N * D + B)
    matrix = random.integers(-127, 128, (N, D)).astype(np.int8)
    return matrix, random.normal(size=(B, D)).astype(np.float32)


@pytest.mark.parametrize("B", range(1, 8))
@pytest.mark.parametrize(("N", "D"), [(1, 32), (5, 64), (43, 160), (300, 256)])
def test_products_of_integers_are_exact(N: int, D: int, B: int) -> None:
    """Integers up to 32,767 that reach it are their own rounding."""
    matrix, _ = drawn(N, D, B)
    x = np.random.default_rng(B).integers(-32767, 32768, (B, D)).astype(np.float32)
    x[:, 3] = 32767
    expected = x.astype(np.int64) @ matrix.T.astype(np.int64)
    assert np.array_equal(product(matrix, x), expected.astype(np.float32))


@pytest.mark.parametrize("D", [32, 8224, 16384])
def test_the_largest_sums_do_not_overflow(D: int) -> None:
    """A lane of int32 adds up to width / 16 of the largest products."""
    matrix = np.full((4, D), 127, np.int8)
    matrix[1] = -127
    x = np.full((2, D), -3.5, np.float32)
    expected = np.repeat([[-1.0, 1, -1, -1]], 2, axis=0) * D * 127 * 3.5
    np.testing.assert_allclose(product(matrix, x), expected, rtol=1e-6)


def test_scale_bias_and_addition() -> None:
    matrix, x = drawn(37, 96, 3)
    random = np.random.default_rng(5)
    scale, bias = (random.normal(size=37).astype(np.float32) for _ in range(2))
    before = random.normal(size=(3, 37)).astype(np.float32)
    exact = x.astype(np.float64) @ (matrix * scale[:, None].astype(np.float64)).T + bias + before
    found = product(matrix, x, scale=scale, bias=bias, before=before)
    # Each number is off by at most half a step; they add up like a random walk.
    step = np.abs(x).max(1, keepdims=True) / 32767
    size = np.linalg.norm(matrix * scale[:, None], axis=1)
    assert (np.abs(found - exact) < 2 * step * size + 1e-4).all()
    without = product(matrix, x, scale=scale, bias=bias)
    np.testing.assert_allclose(found - before, without, atol=1e-4)


def test_rounding_adds_little_to_the_error_of_int8() -> None:
    """A hundredth of what rounding the matrix does, for normal numbers."""
    random = np.random.default_rng(1)
    weight, x = random.normal(size=(200, 768)), random.normal(size=(8, 768)).astype(np.float32)
    scale = np.abs(weight).max(1) / 127
    matrix = np.round(weight / scale[:, None]).astype(np.int8)
    stored = matrix * scale[:, None]
    found = product(matrix, x, scale=scale.astype(np.float32))
    ours = np.abs(found - x @ stored.T).mean()
    assert ours < 0.02 * np.abs(x @ (stored - weight).T).mean()


@pytest.mark.parametrize("B", [1, 3, 4])
def test_vectors_of_zeros_and_numbers_that_are_not_finite(B: int) -> None:
    matrix, x = drawn(40, 1024, B)
    for value, expected in ((0, 0), (1e-38, 0), (np.nan, np.nan), (np.inf, np.nan)):
        changed = x.copy()
        changed[0] = 0
        changed[0, 5] = value
        found = product(matrix, changed)
        assert np.array_equal(found[0], np.full(40, expected, np.float32), equal_nan=True)
        assert np.array_equal(found[1:], product(matrix, x)[1:])  # the others do not notice


def test_only_the_width_of_the_matrix_is_read() -> None:
    """A longer x: the gate of value embeddings reads the first numbers of the residual stream. A
    shorter one: the matrix is padded with zeros.
    """
    matrix, x = drawn(6, 64, 2)
    longer = np.concatenate([x, np.full((2, 16), 1e9, np.float32)], axis=1)
    assert np.array_equal(product(matrix, longer), product(matrix, x))
    matrix[:, 48:] = 0
    x[:, 48:] = 0
    assert np.array_equal(product(matrix, np.ascontiguousarray(x[:, :48])), product(matrix, x))
