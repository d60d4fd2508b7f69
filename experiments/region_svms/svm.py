"""Linear support vector machines, one a class, with hard negatives. Girshick et al. 2013, arXiv:1311.2524, section 2.3.

Positives are the objects themselves, negatives the proposals that overlap no object of the class by 0.3. One pass over
the images: before the machine is trained for the first time, all negatives are kept, later only those that it does not
reject clearly. After 2,000 new ones it is trained again and forgets the clearest. Numbers are those of the authors'
code.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

C, BIAS, POSITIVE_WEIGHT = 1e-3, 10.0, 2.0
HARD, EASY = -1.0001, -1.2
"""Scores above which a negative is kept, and below which it is forgotten."""
NEW_NEGATIVES = 2000
"""New negatives after which a machine is trained again."""
NEGATIVE_OVERLAP = 0.3
"""IoU with every object of the class below which a proposal is a negative."""


class ClassMachine:
    """The machine of one class: `score = features @ weights + bias`.

    Args:
        positives: float32 `(P, D)`, at least one.
    """

    def __init__(self, positives: np.ndarray, seed: int) -> None:
        self.positives, self.seed = positives, seed
        self.negatives = np.zeros((0, positives.shape[1]), np.float16)
        """In half precision, as features are cached: those of all classes are gigabytes."""
        self.waiting: list[np.ndarray] = []
        self.weights, self.bias = np.zeros(positives.shape[1], np.float32), 0.0
        self.trained = False

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Above 0 for what is taken for the class, `(N,)`."""
        return features @ self.weights + self.bias

    def meet(self, negatives: np.ndarray) -> None:
        """Keep the hard ones of an image's negatives `(N, D)`, and train when there are many new ones."""
        hard = negatives[self.scores(negatives) > HARD] if self.trained else negatives
        if len(hard):
            self.waiting.append(hard.astype(np.float16))
        if sum(map(len, self.waiting)) >= NEW_NEGATIVES:
            self.train()

    def train(self) -> None:
        """Train on all that is kept, then forget the negatives that are clear."""
        self.negatives = np.concatenate([self.negatives, *self.waiting])
        self.waiting = []
        if not len(self.negatives):
            return
        labels = np.repeat([1, -1], [len(self.positives), len(self.negatives)])
        machine = LinearSVC(
            C=C, loss="hinge", intercept_scaling=BIAS, class_weight={1: POSITIVE_WEIGHT}, random_state=self.seed,
            max_iter=5000,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # liblinear's last digits change no order of scores
            machine.fit(np.concatenate([self.positives, self.negatives]), labels)
        self.weights, self.bias = machine.coef_[0].astype(np.float32), float(machine.intercept_[0])
        self.trained = True
        self.negatives = self.negatives[self.scores(self.negatives) >= EASY]
