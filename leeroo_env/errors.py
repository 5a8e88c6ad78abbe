"""The one error that users see: an input that cannot be used, in one sentence that says what is wrong and where."""


class InputError(ValueError):
    """Bad input from the user. Programs print its message as one line and exit with code 2."""
