"""What the GAT has to beat: the simpler methods of the report's table, on the same folds."""

from __future__ import annotations

import numpy as np

from . import fit, linear
from .data import AMBIGUOUS
from .study import Result, Study


def event_count(study: Study) -> np.ndarray:
    return np.log1p(np.array([w.events for w in study.tested], float))


def window_regression(study: Study, fold: str, train: list[str]) -> Result:
    """Logistic regression on the flags of a window as a whole: `score` of every window."""

    def compute():
        x, label = study.instances.by_window, np.array([w.label for w in study.windows])
        use = np.isin(study.names, train) & (label != AMBIGUOUS)
        mass = fit.window_weights([w for w, u in zip(study.windows, use) if u])
        seen = np.flatnonzero(np.asarray(x[use].sum(0)).ravel() > 1)
        weight, bias = linear.logistic(x[use][:, seen], label[use], mass, 1.0, False)
        return {"score": x[:, seen] @ weight + bias}

    return Result(f"window-{fold}", {"train": train, "code": 1}, compute)


def boosting(study: Study, fold: str, train: list[str]) -> Result:
    """Gradient-boosted trees on the flags of a process and its relatives, the worst process counting: `score` of every
    window. On Windows a flag may only raise the score, as in the linear head."""

    def compute():
        import lightgbm

        instances = study.instances
        chosen = np.isin(study.names, train)[instances.window]
        use, weight = linear.training_set(study.platform, instances, chosen)
        seen = np.flatnonzero(np.asarray((instances.x[use] > 0).sum(0)).ravel() >= 5)
        settings = {
            "objective": "binary",
            "learning_rate": 0.1,
            "num_leaves": 15,
            "min_data_in_leaf": 5,
            "min_sum_hessian_in_leaf": 1e-2,
            "lambda_l2": 1.0,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "seed": 0,
            "verbose": -1,
        }
        if study.platform == "windows":
            settings["monotone_constraints"] = [1] * len(seen)
        data = lightgbm.Dataset(instances.x[use][:, seen], instances.label[use], weight=weight, params=settings)
        trees = lightgbm.train(settings, data, 150)
        score = trees.predict(instances.x[:, seen], raw_score=True)
        return {"score": instances.maximum(score, len(study.windows))}

    return Result(f"boosting-{fold}", {"train": train, "code": 2}, compute)
