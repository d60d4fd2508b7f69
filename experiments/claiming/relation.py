"""What has to be true of several networks for a statement to hold, such as "plain56 > plain20". Imports no torch.

A relation is arithmetic on arms, which are the networks of a claim, by name: names, numbers, + - * / and comparisons.
A name stands for the arm's value of the relation's measure, `name[test_crf/miou]` for its value of another one.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Value = Callable[[str, str], float]
"""The value of an arm by a measure."""
ARITHMETIC: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
COMPARISONS: dict[type, Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.Eq: operator.eq,
}


@dataclass(frozen=True)
class Relation:
    """One comparison by one measure."""

    measure: str
    """Such as "test/top1", "train/loss_epoch" or "params"."""
    text: str
    tree: ast.Compare

    @property
    def values(self) -> list[tuple[str, str]]:
        """The arms that it compares, each with the measure, in the order of the text."""
        return list(dict.fromkeys(values_in(self.tree, self.measure)))

    def difference(self, value: Value) -> float:
        """What is above zero if the relation holds: the left side minus the right of "a > b"."""
        left, right = (evaluate(side, self.measure, value) for side in (self.tree.left, self.tree.comparators[0]))
        return left - right if isinstance(self.tree.ops[0], ast.Gt) else right - left

    def holds(self, value: Value) -> bool:
        """Whether all comparisons are true of exact values."""
        sides = [evaluate(side, self.measure, value) for side in (self.tree.left, *self.tree.comparators)]
        pairs = zip(self.tree.ops, sides, sides[1:], strict=False)
        return all(COMPARISONS[type(compare)](left, right) for compare, left, right in pairs)


def read_relation(measure: str, text: str, arms: Sequence[str], *, exact: bool) -> Relation:
    """Parse a relation.

    Args:
        exact: whether the values are counted. Measured scores are compared by one > or <.

    Raises:
        ValueError: it is no such arithmetic, or names an arm that there is not.
    """
    try:
        tree = ast.parse(str(text), mode="eval").body
    except SyntaxError:
        raise ValueError(f"'{text}' is no comparison such as one > other") from None
    if not isinstance(tree, ast.Compare) or not {type(one) for one in tree.ops} <= COMPARISONS.keys():
        raise ValueError(f"'{text}' is no comparison by >, < or ==")
    if not exact and (len(tree.ops) > 1 or isinstance(tree.ops[0], ast.Eq)):
        raise ValueError(f"'{text}': measured scores are compared by one > or <")
    relation = Relation(measure, str(text), tree)
    if not relation.values:
        raise ValueError(f"'{text}' compares no arms")
    for arm, _ in relation.values:
        if arm not in arms:
            raise ValueError(f"'{text}' names {arm}; the arms are {', '.join(arms)}")
    return relation


def values_in(node: Any, measure: str) -> Iterator[tuple[str, str]]:
    """The arms and measures of a part of a relation.

    Raises:
        ValueError: the part is something else than described above.
    """
    match node:
        case ast.Compare():
            for side in (node.left, *node.comparators):
                yield from values_in(side, measure)
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            yield from values_in(node.left, measure)
            yield from values_in(node.right, measure)
        case ast.Constant(value=int() | float()):
            pass
        case ast.Name() | ast.Subscript(value=ast.Name()):
            yield arm_and_measure(node, measure)
        case _:
            raise ValueError(f"'{ast.unparse(node)}' is no arm, no number and no sum or product of them")


def evaluate(node: Any, measure: str, value: Value) -> float:
    """The number that a side of a relation stands for."""
    match node:
        case ast.BinOp():
            left, right = (evaluate(side, measure, value) for side in (node.left, node.right))
            return ARITHMETIC[type(node.op)](left, right)
        case ast.Constant(value=int() | float() as number):
            return number
        case _:
            return value(*arm_and_measure(node, measure))


def arm_and_measure(node: ast.Name | ast.Subscript, measure: str) -> tuple[str, str]:
    if isinstance(node, ast.Name):
        return node.id, measure
    assert isinstance(node.value, ast.Name)
    return node.value.id, ast.unparse(node.slice).replace(" ", "")
