"""Small symmetric matrices, one per group, the group index last.

Arrays of shape (q, q, J) with J last let every operation run over contiguous memory; the loops over q are unrolled.
Measured at J = 100,000, q = 2, ten columns: 25 ms an evaluation, against 200 ms and more with numpy's batched
`cholesky` and `solve` on (J, q, q).
"""

from __future__ import annotations

import numpy as np

from mlsql._arrays import Array


def congruence(L: Array, A: Array) -> Array:
    """L' A_j L for every j.  L (q, q), A (q, q, J)."""
    q = len(L)
    left = np.tensordot(L.T, A, axes=1)
    result = np.zeros_like(A)
    for d in range(q):
        for b in range(q):
            if L[b, d] != 0.0:
                result[:, d] += L[b, d] * left[:, b]
    return result


def cholesky(M: Array) -> Array:
    """Lower Cholesky factors of positive definite M (q, q, J)."""
    q = M.shape[0]
    C = np.zeros_like(M)
    for k in range(q):
        rest = M[k, k].copy()
        for i in range(k):
            rest -= C[k, i] * C[k, i]
        C[k, k] = np.sqrt(rest)
        for r in range(k + 1, q):
            value = M[r, k].copy()
            for i in range(k):
                value -= C[r, i] * C[k, i]
            C[r, k] = value / C[k, k]
    return C


def solve_lower(C: Array, B: Array) -> Array:
    """C_j^-1 B for lower triangular C (q, q, J) and one B (q, m): (q, m, J)."""
    q, m = B.shape
    X = np.empty((q, m, C.shape[2]))
    for k in range(q):
        value = np.repeat(B[k][:, None], C.shape[2], axis=1)
        for i in range(k):
            value -= C[k, i] * X[i]
        X[k] = value / C[k, k]
    return X


def gram(N: Array) -> Array:
    """N_j' N_j for N (r, q, J)."""
    r, q, _ = N.shape
    K = np.empty((q, q, N.shape[2]))
    for a in range(q):
        for b in range(a + 1):
            value = N[0, a] * N[0, b]
            for i in range(1, r):
                value += N[i, a] * N[i, b]
            K[a, b] = K[b, a] = value
    return K


def product(A: Array, B: Array) -> Array:
    """A_j B_j for A (q, r, J) and B (r, m, J) or vectors B (r, J)."""
    result = A[:, 0, None] * B[0] if B.ndim == 3 else A[:, 0] * B[0]
    for k in range(1, A.shape[1]):
        result += A[:, k, None] * B[k] if B.ndim == 3 else A[:, k] * B[k]
    return np.asarray(result)


def left_over(A: Array, K: Array) -> Array:
    """P_j = I - A_j K_j for (q, q, J)."""
    P = -product(A, K)
    for a in range(len(P)):
        P[a, a] += 1.0
    return P


def inner(U: Array, W: Array) -> Array:
    """U_j'W_j for U (r, q, J) and W (r, m, J): (q, m, J)."""
    result = U[0][:, None] * W[0]
    for k in range(1, len(U)):
        result += U[k][:, None] * W[k]
    return np.asarray(result)


def packed(M: Array) -> Array:
    """Lower triangle of symmetric (q, q, J) as (q(q+1)/2, J)."""
    rows, columns = np.tril_indices(M.shape[0])
    return M[rows, columns]


def unpacked_pairs(M: Array, q: int) -> Array:
    """(k, k) sums over pairs of lower-triangle entries as (q, q, q, q)."""
    index = np.empty((q, q), dtype=np.int64)
    rows, columns = np.tril_indices(q)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    full: Array = M[index[:, :, None, None], index[None, None]]
    return full
