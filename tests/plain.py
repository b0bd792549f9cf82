"""Oracles in plain NumPy float64, written from the formulas and not from edgeq, and problems to try
them on.
"""

import itertools

import numpy as np

from edgeq.types import Solution


def random_layer(rng, *, out_features=6, in_features=24, tokens=300, drift=0.0):
    """W, X and X_hat; correlated inputs, a few of them large. Exact in float32: all backends see
    the same values.
    """
    distance = np.abs(np.subtract.outer(np.arange(in_features), np.arange(in_features)))
    mixing = rng.standard_normal((in_features, in_features)) * np.exp(-distance / 4)
    X = rng.standard_normal((tokens, in_features)) @ mixing / np.linalg.norm(mixing, axis=0)
    X += 0.5 * rng.standard_normal(X.shape)
    X *= 1 + 2 * (rng.random(in_features) > 0.9)
    bend = rng.standard_normal((in_features, in_features)) / np.sqrt(in_features)
    X_hat = X + drift * (X @ bend + rng.standard_normal(X.shape)) if drift else X
    W = rng.standard_normal((out_features, in_features)) / np.sqrt(in_features)
    return tuple(array.astype(np.float32).astype(np.float64) for array in (W, X, X_hat))


def moments(X, X_hat) -> tuple[np.ndarray, np.ndarray]:
    """H and D of one piece of activations."""
    return X_hat.T @ X_hat / len(X), (X - X_hat).T @ X_hat / len(X)


def damped(H, damping):
    return H + damping * np.trace(H) / len(H) * np.eye(len(H))


def per_column(per_group, group_size, in_features):
    """One value per column, written out group by group."""
    columns = np.empty((len(per_group), in_features))
    for group in range(per_group.shape[1]):
        for column in range(group * group_size, min((group + 1) * group_size, in_features)):
            columns[:, column] = per_group[:, group]
    return columns


def column_values(fitted, grid, in_features, backend) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets of a fitted grid, one value per column, in float64."""
    size = in_features if grid.group_size is None else grid.group_size
    arrays = (
        backend.to_numpy(array).astype(np.float64) for array in (fitted.scales, fitted.offsets)
    )
    scales, offsets = (per_column(array, size, in_features) for array in arrays)
    return scales, offsets


def to_backend(fitted, backend):
    return Solution(backend.asarray(fitted.scales), backend.asarray(fitted.offsets))


def nearest(V, scales, offsets, max_code):
    return np.clip(np.rint((V - offsets) / scales), 0, max_code)


def weighted_loss(Q, V, H):
    """(q - v) H (q - v)^T of every row."""
    E = Q - V
    return np.einsum("ri,ij,rj->r", E, H, E)


def activation_loss(Q, W, X, X_hat):
    """||X w - X_hat q||^2 / tokens of every row."""
    return ((X @ W.T - X_hat @ Q.T) ** 2).sum(axis=0) / len(X)


def optimal_brain_quantizer(V, H, scales, offsets, max_code, order=None):
    """Codes and losses of rounding one column after the other, inverting the free part of H anew
    each time.

    Shapes: scales and offsets (out, in).
    """
    order = np.arange(V.shape[1]) if order is None else np.asarray(order)
    work, codes, losses = V.copy(), np.zeros_like(V), np.zeros(len(V))
    for place, column in enumerate(order):
        free = order[place:]
        inverse = np.linalg.inv(H[np.ix_(free, free)])
        codes[:, column] = nearest(work[:, column], scales[:, column], offsets[:, column], max_code)
        error = work[:, column] - (scales[:, column] * codes[:, column] + offsets[:, column])
        losses += error**2 / inverse[0, 0]
        work[:, free] -= np.outer(error / inverse[0, 0], inverse[0])
    return codes, losses


def best_codes(V, H, scales, offsets, max_code):
    """The smallest loss of every row over all combinations of codes."""
    codes = np.array(
        list(itertools.product(range(max_code + 1), repeat=V.shape[1])), dtype=np.float64
    )
    return np.array(
        [
            weighted_loss(s * codes + o, v, H).min()
            for v, s, o in zip(V, scales, offsets, strict=True)
        ]
    )


def resolved_after_every_column(W, X, X_hat, scales, offsets, max_code):
    """Codes from solving min ||X W.T - X_hat Q.T|| for all free columns anew after each rounded
    one.
    """
    codes, Q = np.zeros_like(W), np.zeros_like(W)
    for column in range(W.shape[1]):
        missing = X @ W.T - X_hat[:, :column] @ Q[:, :column].T
        free = np.linalg.lstsq(X_hat[:, column:], missing, rcond=None)[0].T
        codes[:, column] = nearest(free[:, 0], scales[:, column], offsets[:, column], max_code)
        Q[:, column] = scales[:, column] * codes[:, column] + offsets[:, column]
    return codes


def min_max_group(values, bits, zeros, stored=np.float16):
    """Scale and offset that cover a group of weights of one row, written from section 1.4 of the
    GPTQ grid.
    """
    low, high, max_code = min(0.0, values.min()), max(0.0, values.max()), 2**bits - 1
    if zeros == "symmetric":
        scale = float(stored(2 * max(-low, high) / max_code))
        return scale, -scale * 2 ** (bits - 1)
    scale = float(stored((high - low) / max_code))
    if zeros == "integer":
        return scale, -scale * float(np.clip(np.rint(-low / scale), 0, max_code))
    return scale, float(stored(low))


def min_max(W, group_size, bits, zeros) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets, one value per column."""
    scales, offsets = np.empty_like(W), np.empty_like(W)
    for row, start in itertools.product(range(len(W)), range(0, W.shape[1], group_size)):
        columns = slice(start, start + group_size)
        scales[row, columns], offsets[row, columns] = min_max_group(W[row, columns], bits, zeros)
    return scales, offsets


def one_row_at_a_time(V, H, codes, scales, offsets, max_code, order, sweeps):
    """Coordinate descent from the definition: each code tried at every value of the grid, all else
    held fixed.
    """
    codes = codes.copy()
    values = np.arange(max_code + 1)
    for row in range(len(V)):
        for column in list(order) * sweeps:
            trials = np.repeat(codes[row][None], max_code + 1, axis=0)
            trials[:, column] = values
            losses = weighted_loss(scales[row] * trials + offsets[row], V[row], H)
            if losses.min() < losses[int(codes[row, column])] - 1e-12 * abs(losses).max():
                codes[row, column] = values[losses.argmin()]
    return codes


def quadratic(Q, B, H):
    """tr(Q H Q^T) - 2 <B, Q> of every row."""
    return np.einsum("ri,ij,rj->r", Q, H, Q) - 2 * (B * Q).sum(axis=1)


def closest_codes(v, H, scales, offsets, max_code):
    """The smallest loss of one row over all combinations of codes, by depth-first search on the
    Cholesky factor.

    Shapes: v, scales and offsets (in,).
    """
    L = np.linalg.cholesky(H)
    best = [np.inf]

    def descend(column, spent, errors):
        if column < 0:
            best[0] = spent
            return
        inherited = L[column + 1 :, column] @ errors[column + 1 :]
        values = scales[column] * np.arange(max_code + 1) + offsets[column] - v[column]
        costs = spent + (L[column, column] * values + inherited) ** 2
        for value, cost in sorted(zip(values, costs, strict=True), key=lambda item: item[1]):
            if cost >= best[0]:
                break
            errors[column] = value
            descend(column - 1, cost, errors)

    descend(len(v) - 1, 0.0, np.zeros(len(v)))
    return best[0]
