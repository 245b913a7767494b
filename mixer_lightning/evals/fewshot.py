"""Few-shot accuracy: a linear classifier in closed form on frozen features (arXiv 2010.11929, section 4).

The protocol is that of big_vision's evaluators/fewshot_lsr.py and configs/common_fewshot.py.

Legend: N points, D = F + 1 features with the bias, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixer_lightning.data.crops import FILTERS, Filter
from mixer_lightning.evals import Predict, eval_split
from mixer_lightning.ranges import NonNegativeInt, PositiveFloat, PositiveFraction, PositiveInt

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Dataset, Indices

BIAS = 100.0  # value of the feature that is constant: so large that its weight is hardly regularised
EPSILON = 1e-5  # added to deviations


@dataclass(frozen=True, kw_only=True)
class Fewshot:
    """Top-1 of ridge regression on the features of a few training images of each class.

    shots: images of a class, each number a figure of its own.
    seeds: of the samples; the figure is the mean over them.
    l2: strength of the regularisation.
    split: where it is evaluated; null for test, or val where there is no test.
    eval_crop: images are resized to image_size / eval_crop on both sides, and their centre is shown: 256 and 224.
    eval_interpolation: of that resize; big_vision's is TensorFlow's bilinear, not antialiased. null: the recipe's.
    at_end: during training, evaluate after the last step only.

    A training image that cannot be read is named, and the next one drawn of its class takes its place.
    big_vision draws from the first 65,000 of ImageNet's images in a shuffled order; here from all training images.
    """

    shots: list[PositiveInt] = field(default_factory=lambda: [1, 5, 10, 25])
    seeds: list[NonNegativeInt] = field(default_factory=lambda: [0, 1, 2])
    l2: PositiveFloat = 2.0**10
    split: str | None = None
    eval_crop: PositiveFraction = 0.875
    eval_interpolation: Filter | None = "tf_bilinear"
    at_end: bool = False
    uses_head: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or not self.seeds:
            raise ValueError(
                f"fewshot: shots={self.shots}, seeds={self.seeds}: at least one of each, shots of 1 or more"
            )
        if self.l2 <= 0:
            raise ValueError(f"fewshot: l2 must be above 0, found {self.l2}")
        if self.eval_interpolation is not None and self.eval_interpolation not in FILTERS:
            raise ValueError(
                f"fewshot: eval_interpolation is {self.eval_interpolation!r}; choose one of {', '.join(FILTERS)}"
            )
        if not 0 < self.eval_crop <= 1:
            raise ValueError(f"fewshot: eval_crop must lie in (0, 1], found {self.eval_crop}")

    def check(self, data: Dataset) -> None:
        """Refuse images with several labels, which have no one class to be drawn for."""
        if "train" not in data.splits:
            raise ValueError(f"{data.name} has no train split, from which few-shot takes its images")
        for split in ("train", eval_split(data, self.split)):
            if data.splits[split].labels(np.arange(1)).ndim > 1:
                raise ValueError(f"images of {data.name} have several labels; few-shot needs one")

    def metric_names(self, data: Dataset) -> list[str]:
        """One for each number of shots."""
        return [self._name(data, shots) for shots in self.shots]

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        """`fewshot/<data set>_<shots>shot`."""
        data = predict.data
        split = eval_split(data, self.split)
        train = data.splits["train"]
        labels = train.labels(np.arange(len(train)))
        samples, indices, features = self._sampled_features(predict, labels)
        order = np.argsort(indices)
        classifiers = [
            fit(
                features[order[np.searchsorted(indices, sample, sorter=order)]].to(predict.device),
                torch.from_numpy(labels[sample]).to(predict.device),
                num_classes=len(data.classes),
                l2=self.l2,
            )
            for sample in samples.values()
        ]
        correct = predict.all_gather(
            torch.stack([each(batch).argmax(dim=1) == label for each in classifiers], dim=1)
            for batch, label in predict.features(split, **self._view())
        )  # [N, samples]
        accuracy = dict(zip(samples, (int(n) / len(correct) for n in correct.sum(dim=0)), strict=True))
        for shots in self.shots:
            mean = sum(accuracy[shots, seed] for seed in self.seeds) / len(self.seeds)
            yield self._name(data, shots), mean

    def _name(self, data: Dataset, shots: int) -> str:
        return f"fewshot/{data.name}_{shots}shot"

    def _view(self) -> dict[str, Any]:
        return {
            "eval_resize": "square",
            "eval_crop": self.eval_crop,
            "eval_interpolation": self.eval_interpolation,
        }

    def _sampled_features(
        self, predict: Predict, labels: Indices
    ) -> tuple[dict[tuple[int, int], Indices], Indices, Tensor]:
        """The images of each (shots, seed); then all images that were read, [U], and their features [U, F]."""
        indices, features = _nothing(), torch.empty(0)
        bad = _nothing()
        while True:  # once, unless images are bad: then others are drawn for them
            samples = {
                (shots, seed): sample
                for seed in self.seeds
                for shots, sample in sample_shots(
                    labels, self.shots, num_classes=len(predict.data.classes), seed=seed, bad=bad
                ).items()
            }
            used = np.unique(np.concatenate(list(samples.values())))  # in order, for the disk's sake
            if len(used) == 0:
                raise ValueError(
                    f"fewshot: none of the images drawn from {predict.data.name}'s train can be read"
                )
            new = np.setdiff1d(used, indices)
            if len(new) == 0:
                return samples, indices, features
            batches = list(predict.features("train", indices=new, mark_bad=True, **self._view()))
            found = predict.all_gather(batch for batch, _ in batches)
            is_good = predict.all_gather(label for _, label in batches) >= 0
            features = torch.cat([features, found[is_good]]) if len(indices) else found[is_good]
            indices = np.concatenate([indices, new[is_good.numpy()]])
            bad = np.concatenate([bad, new[~is_good.numpy()]])


def sample_shots(
    labels: Indices, shots: list[int], *, num_classes: int, seed: int, bad: Indices | None = None
) -> dict[int, Indices]:
    """Indices of the first so many images of each class in a random order, for every number of shots.

    A class that has fewer gives all. In place of a `bad` image stands the next in the order.
    """
    generator = np.random.default_rng(seed)
    by_class, ends = np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=num_classes))
    orders = [generator.permutation(members) for members in np.split(by_class, ends[:-1])]
    if bad is not None and len(bad):
        orders = [order[np.isin(order, bad, invert=True)] for order in orders]
    return {number: np.concatenate([order[:number] for order in orders]) for number in shots}


def _nothing() -> Indices:
    return np.zeros(0, np.int64)


class LinearClassifier(NamedTuple):
    """An affine map, weight [F, K] and bias [K] in float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features [B, F] -> scores [B, K]."""
        return features.double() @ self.weight + self.bias


def fit(features: Tensor, labels: Tensor, *, num_classes: int, l2: float) -> LinearClassifier:
    """The map from features [N, F] to scores that are 1 for the label [N] and -1 for others, by ridge regression.

    Features are standardised first, by the mean and deviation of these N, and the constant BIAS stands beside them.
    """
    features = features.double()
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0) + EPSILON
    points = (features - mean) / deviation
    points = torch.cat([points, torch.full_like(points[:, :1], BIAS)], dim=1)  # [N, D]
    targets = torch.full((len(labels), num_classes), -1.0, dtype=torch.float64, device=features.device)
    targets[torch.arange(len(labels), device=labels.device), labels] = 1.0
    solution = ridge(points, targets, l2=l2)  # [D, K]
    weight = solution[:-1] / deviation[:, None]  # now for features as they come
    return LinearClassifier(weight, BIAS * solution[-1] - mean @ weight)


def ridge(x: Tensor, y: Tensor, *, l2: float) -> Tensor:
    """Weights w [D, K] with the least |x w - y|^2 + l2 |w|^2, for points x [N, D] and targets y [N, K]."""
    # The derivative by w is zero where
    #     x^T (x w - y) + l2 w = 0,   that is   (x^T x + l2 I) w = x^T y,                              (A)
    # D equations, the same for all K targets. With more features than points that is needlessly many: the first form
    # also says that w = x^T a, a combination of the points, with a = (y - x w) / l2. Put w = x^T a into that:
    #     l2 a = y - x x^T a,         that is   (x x^T + l2 I) a = y,   w = x^T a,                     (B)
    # N equations. Both have the one solution: the matrices are symmetric and, with l2 > 0, positive definite, so that
    # Cholesky's factors exist. Their eigenvalues lie between l2 and l2 + |x|^2. The bias alone makes that 2.5 * 10^8
    # for 25,000 points, a condition number of 2 * 10^5: float64 keeps ten digits, float32 would keep two.
    num_points, num_features = x.shape
    if num_points >= num_features:
        return solve_regularised(x.mT @ x, x.mT @ y, l2=l2)
    return x.mT @ solve_regularised(x @ x.mT, y, l2=l2)


def solve_regularised(gram: Tensor, right: Tensor, *, l2: float) -> Tensor:
    """The solution of (gram + l2 I) z = right."""
    gram.diagonal().add_(l2)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
