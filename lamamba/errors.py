"""The one exception that means: what the caller gave cannot be used. No torch."""


class InputError(ValueError):
    """A file, name or number that was given is unusable.

    The message says what was got, what was expected and what to do; command lines print it as one line and exit 2.
    """


def brief(error: Exception) -> str:
    """What a library said, short: its first line, without the advice that some give to switch their protection off."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
