"""Errors in the user's data, which reach the user as one line even from a worker process."""


class DataError(ValueError):
    """Something is wrong with the data or a data flag; the message is one line that names it and the fix.

    torch raises an exception of a worker process again in the parent, as the same class with the whole traceback as
    its message. The last line of that is ours.

    `kind` says for `--check-data` what sort of fault it is; from a worker process it does not arrive.
    """

    def __init__(self, message: str, kind: str = "layout") -> None:
        self.kind = kind
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))
