"""The two kinds of error that are said in one line."""


class InputError(ValueError):
    """Input that is wrong, said in one line that names the file or field, the value, the rule and the remedy.

    The command prints the line on standard error and leaves with status 2; anything else that is raised
    is a bug and leaves with status 1.
    """


class RunError(RuntimeError):
    """A run that cannot go on though its input was right; the command says why in one line, with status 1."""
