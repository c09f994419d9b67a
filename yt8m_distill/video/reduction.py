"""PCA with whitening, as YouTube-8M did with the vectors of its image network."""

import os
from typing import NamedTuple

import numpy as np

# mean.npy [D], eigenvals.npy [E], eigenvecs.npy [D, E]: the names as published.
FILES = ("mean.npy", "eigenvals.npy", "eigenvecs.npy")
_EPSILON = 1e-4


class Reduction(NamedTuple):
    """A projection onto E directions, each scaled to variance 1.

        y = V^T (x - m) / sqrt(l + 1e-4)

    Attributes:
        mean: m [D].
        values: l [E], the variance of each direction.
        vectors: V [D, E].
    """

    mean: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    def reduce(self, vectors: np.ndarray) -> np.ndarray:
        """[N, E] float32 of x [N, D]; each row by itself.

        Raises:
            ValueError: for vectors of another width.
        """
        if vectors.shape[1] != self.mean.size:
            raise ValueError(
                f"the network gives {vectors.shape[1]} numbers, and the PCA is of "
                f"{self.mean.size}"
            )
        scaled = self.vectors / np.sqrt(self.values + np.float32(_EPSILON))
        return np.stack([row @ scaled for row in vectors - self.mean])


def read(folder: str, flag: str) -> Reduction:
    """The matrices in a folder with mean.npy, eigenvals.npy and eigenvecs.npy.

    `eigenvecs.npy` has one eigenvector per column; also per row, unless it is square.

    Raises:
        ValueError: for a file that is missing, or shapes that do not fit.
    """
    arrays = []
    for name in FILES:
        path = os.path.join(folder, name)
        try:
            arrays.append(np.load(path, allow_pickle=False).astype(np.float32))
        except OSError as error:
            reason = error.strerror or "it cannot be read"
            raise ValueError(f"--{flag}={folder}: {name}: {reason}.") from error
        except (ValueError, EOFError, TypeError, AttributeError) as error:
            line = f"--{flag}={folder}: {name} is not an array of numbers."
            raise ValueError(line) from error
    mean, values, vectors = arrays[0].ravel(), arrays[1].ravel(), arrays[2]
    if vectors.shape == (values.size, mean.size) != vectors.shape[::-1]:
        vectors = vectors.T
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"--{flag}={folder} has a number that is not finite.")
    if vectors.shape != (mean.size, values.size) or not (values >= 0).all():
        raise ValueError(
            f"--{flag}={folder}: mean {arrays[0].shape}, eigenvals {arrays[1].shape} "
            f"and eigenvecs {arrays[2].shape} do not fit together."
        )
    return Reduction(mean, values, np.ascontiguousarray(vectors))
