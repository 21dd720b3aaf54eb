"""Membership inference: whether the loss of a denoiser tells the pictures that it was trained on from others.

Every picture meets the same noise at the same times, so that its loss is its own (Carlini et al. 2023, section 5.3).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.stats

SHARES = (0.1, 0.25, 0.5, 0.75)  # of the way from pictures to noise
NOISES = 4  # at each
FALSE_POSITIVES = 0.01


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that the loss of a member (N,) is below that of another picture (M,); equal ones count half."""
    ranks = scipy.stats.rankdata(np.concatenate([members, others]))[: len(members)]
    return 1.0 - float(ranks.mean() - (len(members) + 1) / 2) / len(others)


def true_positives(members: np.ndarray, others: np.ndarray) -> float:
    """The share of members found by the highest bound on the loss that at most 1 % of the others lie below."""
    bound = np.sort(others)[int(FALSE_POSITIVES * len(others))]
    return float((members < bound).mean())


def estimates(
    members: np.ndarray, others: np.ndarray, seed: int, resamples: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """auc and tpr, with 95 % intervals of the percentile bootstrap over pictures; auc/<share> at each time alone.

    Args:
      members, others: losses, (N, T) and (M, T), each the mean over the noises.
    """
    # Of equal weight at each time, whatever the losses there are like.
    scale = np.concatenate([members, others]).std(0) + 1e-12
    columns = {"": ((members / scale).mean(1), (others / scale).mean(1))}
    columns |= {f"/{share}": (members[:, i], others[:, i]) for i, share in enumerate(SHARES)}
    for suffix, (inside, outside) in columns.items():
        for name, measure in (("auc", auc), ("tpr", true_positives))[: 1 if suffix else 2]:
            rng = np.random.default_rng(seed)
            again = [
                measure(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(resamples)
            ]
            low, high = np.percentile(again, (2.5, 97.5)).tolist()
            yield name + suffix, {"value": measure(inside, outside), "interval": (low, high), "n": len(inside)}
