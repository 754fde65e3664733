"""Mathematics of the quality measures, in NumPy alone."""

import dataclasses

import numpy as np

_PAIRS_FOR_AN_ERROR = 16


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean [d] and sum of outer products of deviations [d, d]; merges as Chan, Golub and LeVeque (1979) do."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        mean = values.mean(0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), scatter)

    @property
    def covariance(self) -> np.ndarray:
        return self.scatter / (self.count - 1)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Features of images that were chosen to be looked at in pairs: their ids, and arrays [n, d] that follow each
    other.
    """

    ids: list[str]
    arrays: list[np.ndarray]

    def merge(self, other: "Sample") -> "Sample":
        return Sample(self.ids + other.ids, self.arrays + other.arrays)

    def in_order(self) -> np.ndarray:
        return np.concatenate(self.arrays)[np.argsort(self.ids, kind="stable")]


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared Frechet distance of two Gaussians (arXiv 1706.08500).

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2), which stays real where
    covariances are singular.
    """
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross
    return float(max(distance, 0.0))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


@dataclasses.dataclass(frozen=True)
class KernelSums:
    """Sums from which the kernel distance of n pairs and its error follow, of some of the pairs' rows.

    With z_i = (x_i, y_i) and h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), i != j, for the kernel
    k(x, y) = (x.y / d + 1)^3: `h` is sum_ij h_ij, `squares` sum_ij h_ij^2, `rows` sum_i (sum_j h_ij)^2.
    """

    count: int  # n, of all
    h: float
    squares: float
    rows: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, first: int, last: int) -> "KernelSums":
        """Of rows `first` to `last` of x and y, float64 [n, d]."""
        rows = slice(first, last)
        h = _kernel(x[rows], x) + _kernel(y[rows], y) - _kernel(x[rows], y) - _kernel(y[rows], x)
        h[np.arange(len(h)), np.arange(first, first + len(h))] = 0.0
        return cls(len(x), h.sum(), np.square(h).sum(), np.square(h.sum(1)).sum())

    def merge(self, other: "KernelSums") -> "KernelSums":
        return KernelSums(self.count, self.h + other.h, self.squares + other.squares, self.rows + other.rows)

    def distance(self) -> float:
        """Unbiased squared MMD (KID; arXiv 1801.01401)."""
        return float(self.h / (self.count * (self.count - 1)))

    def error(self) -> float | None:
        """Standard error of `distance`, from an unbiased estimate of its variance as a U-statistic (Hoeffding, 1948):
        (4 (n - 2) Var E[h | z] + 2 Var h) / (n (n - 1)). None of fewer than 16 pairs, which tell too little.
        """
        n = self.count
        if n < _PAIRS_FOR_AN_ERROR:
            return None
        squared_mean = (self.h**2 - 4.0 * self.rows + 2.0 * self.squares) / (n * (n - 1) * (n - 2) * (n - 3))
        # Estimated below 0 it is near 0, as for equal distributions.
        given_z = max(0.0, (self.rows - self.squares) / (n * (n - 1) * (n - 2)) - squared_mean)
        whole = self.squares / (n * (n - 1)) - squared_mean
        variance = (4.0 * (n - 2) * given_z + 2.0 * whole) / (n * (n - 1))
        return float(np.sqrt(max(0.0, variance)))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n, d] and [m, d] to squared Euclidean distances [n, m]."""
    return np.maximum(np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2.0 * x @ y.T, 0.0)


def inception_score(probabilities: Moments, entropy: Moments) -> float:
    """exp(mean KL(p(y|x) || p(y))) (arXiv 1606.03498) from the mean of p(y|x) and of sum_y p log p.

    Of all images at once; the paper has the mean and deviation over ten parts of 5,000, which of few images is lower.
    """
    marginal = np.clip(probabilities.mean, 1e-300, None)
    return float(np.exp(entropy.mean[0] - np.sum(probabilities.mean * np.log(marginal))))
