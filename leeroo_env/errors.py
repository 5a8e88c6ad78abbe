"""The one error that users see: an input that cannot be used, in one sentence that says what is wrong and where."""

# What goes wrong where stored values have the right types but do not fit what is made of them.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class InputError(ValueError):
    """Bad input from the user. Programs print its message as one line and exit with code 2."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
