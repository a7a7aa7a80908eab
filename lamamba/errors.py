"""The one exception that means: what the caller gave cannot be used. No torch."""


class InputError(ValueError):
    """A file, name or number that was given is unusable.

    The message says what was got, what was expected and what to do; command lines print it as one line and exit 2.
    """
