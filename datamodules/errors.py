"""Errors in the user's data, which reach the user as one line even from a data-loader worker."""


class DataError(ValueError):
    """Something is wrong with the data or a data flag; the message is one line that names it and the fix.

    PyTorch re-raises a worker's exception in the parent as the same class, but with the whole traceback as its message.
    The constructor keeps the last line, which is the original message.

    `kind` is the category that `--check-data` reports. It is lost on the way from a worker to the parent.
    """

    def __init__(self, message: str, kind: str = "layout") -> None:
        self.kind = kind
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))
