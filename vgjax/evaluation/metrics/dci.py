"""DCI: how far stage 1 keeps the known factors apart (Eastwood and Williams 2018), read from real test pictures alone.

Logistic regressions with an L1 penalty (the lasso of the paper's section 4.3, for levels) learn each factor from the
components of both channels on one half of the pictures and are scored on the other. Those on one channel alone tell
what leaks into it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from vgjax import pipeline
from vgjax.evaluation.metrics.base import Estimate, Metric, Options, Results, Seen, TestCase
from vgjax.evaluation.metrics.numbers import mean_estimate

COMPONENTS = 48  # most a channel
PENALTY = 0.3  # the regressions' C: inverse strength of the penalty


def concentration(importance_RC: np.ndarray) -> float:
    """1 - entropy of each row's shares, to base C, averaged by the rows' weight: 1 where each row has one entry.

    0 where nothing has weight: what is not read is not kept apart.

    Disentanglement of (components, factors), completeness of its transpose (section 2).
    """
    weight_R1 = importance_RC.sum(1, keepdims=True)
    if not weight_R1.any():
        return 0.0
    shares_RC = importance_RC / np.maximum(weight_R1, 1e-12)
    entropy_R = -(shares_RC * np.log(np.maximum(shares_RC, 1e-12))).sum(1) / np.log(importance_RC.shape[1])
    return float(np.average(1 - entropy_R, weights=weight_R1[:, 0]))


def measure(cases: Sequence[TestCase], drawn: Mapping[str, Seen], real: Seen, options: Options) -> Results:
    """dci/disentanglement, /completeness, /informativeness: mean accuracy over factors, read from both channels.

    dci/<channel>/<factor> is the accuracy from one channel alone, beside dci/chance/<factor>, the commonest level's.
    """
    if real.factors is None:
        raise ValueError("the metric 'dci' needs what stage 1 finds in the real pictures")
    half, parts = len(cases) // 2, {}
    for channel, x_NF in real.factors.items():
        basis = pipeline.principal_components(x_NF[:half].astype(np.float64), COMPONENTS)
        parts[channel] = (x_NF - basis["mean"]) @ basis["whiten"]
    seen = {"both": np.concatenate(list(parts.values()), axis=1), **parts}
    importances, right, first = [], [], np.arange(len(cases)) < half
    for factor in options.reader.described:
        levels = np.array([case.levels.get(factor, "") for case in cases])
        fitted, scored = first & (levels != ""), ~first & (levels != "")
        found, counts = np.unique(levels[fitted], return_counts=True)
        if len(found) < 2 or not scored.any():
            continue
        yield f"dci/chance/{factor}", mean_estimate(levels[scored] == found[counts.argmax()], options)
        for name, x_NM in seen.items():
            readout = LogisticRegression(
                l1_ratio=1.0, solver="saga", C=PENALTY, tol=1e-2, max_iter=1000, random_state=0
            ).fit(x_NM[fitted], levels[fitted])
            hits = readout.predict(x_NM[scored]) == levels[scored]
            if name == "both":
                weights_M = np.abs(readout.coef_).sum(0)
                importances.append(weights_M / max(weights_M.sum(), 1e-12))  # factors count alike
                right.append(hits.mean())
            else:
                yield f"dci/{name}/{factor}", mean_estimate(hits, options)
    if len(importances) > 1:
        importance_CJ = np.stack(importances, axis=1)
        yield "dci/disentanglement", Estimate(concentration(importance_CJ), len(cases) - half)
        yield "dci/completeness", Estimate(concentration(importance_CJ.T), len(cases) - half)
        yield "dci/informativeness", Estimate(float(np.mean(right)), len(cases) - half)


METRIC = Metric(measure, needs=("prior",))
