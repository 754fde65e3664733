"""Mathematics of the quality measures, in NumPy alone."""

import dataclasses

import numpy as np


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


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 (KID; arXiv 1801.01401); x and y [n, d] of equal n."""
    size, dimension = x.shape
    xx, yy, xy = ((a @ b.T / dimension + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    off_diagonal = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (size * (size - 1))
    return float(off_diagonal - 2.0 * xy.mean())


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n, d] and [m, d] to squared Euclidean distances [n, m]."""
    return np.maximum(np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2.0 * x @ y.T, 0.0)


def inception_score(probabilities: Moments, entropy: Moments) -> float:
    """exp(mean KL(p(y|x) || p(y))) (arXiv 1606.03498) from the mean of p(y|x) and of sum_y p log p."""
    marginal = np.clip(probabilities.mean, 1e-300, None)
    return float(np.exp(entropy.mean[0] - np.sum(probabilities.mean * np.log(marginal))))
