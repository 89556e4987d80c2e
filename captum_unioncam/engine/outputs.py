"""The outputs of one call's passes: each one tensor, which the targets fit, and all of one form."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.engine._captum import TargetType
from captum_unioncam.engine.checks import check_target
from captum_unioncam.engine.confidence import output_tensor
from captum_unioncam.engine.tuning import WrongRows


class Outputs:
    """What is known of a model's outputs: the first has to fit the targets, and the others have to be like it.

    Args:
        targets (Sequence): Each as Captum's ``target``.
        examples (int): N.
        argument (str): What the targets are called. Default: "target"
    """

    def __init__(self, targets: Sequence[TargetType], examples: int, argument: str = "target") -> None:
        self.targets, self.examples, self.argument = targets, examples, argument
        self.form: torch.Size | None = None
        self.first: Tensor | None = None
        """That of the examples as they are: of the first pass, which sees what a layer computes for them."""
        self.misses_target = False
        for target in targets:
            check_target(target, examples, argument=argument)

    def tensor(self, output: Any, rows: int, function: str = "forward_func") -> Tensor:
        """The tensor that a pass of so many rows returned, with a row for each.

        Raises:
            WrongRows: It has other rows.
            ValueError: It holds no such tensor, or one that is not like that of the first pass.
            AssertionError: A target does not fit it.
        """
        tensor = output_tensor(output, rows, function)
        if rows == 1 and tensor.shape != (1,) and (tensor.dim() == 1 or tensor.shape == self.form):
            # A model that squeezes its output has taken the one row away.
            tensor = tensor.unsqueeze(0)
        if tensor.shape[0] != rows:
            raise WrongRows(
                f"{function}: returned the shape {tuple(tensor.shape)} for {rows} rows of input; give a function with "
                "one row of output for each. For one that takes a fixed number of rows, give as many examples, and the "
                "number as internal_batch_size."
            )
        if self.form is None:
            self.misses_target = True
            for target in self.targets:
                check_target(target, self.examples, tensor.shape[1:], self.argument)
            self.misses_target = False
            self.form = tensor.shape[1:]
            self.first = tensor.detach()
        elif tensor.shape[1:] != self.form:
            raise ValueError(
                f"{function}: returned the shape {tuple(tensor.shape)} for {rows} rows, where the first pass had "
                f"(rows, {', '.join(map(str, self.form))}); return as many numbers a row in every pass."
            )
        return tensor
