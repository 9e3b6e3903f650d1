"""The one kind of error that a user can mend."""


class InputError(ValueError):
    """Input that is wrong, said in one line that names the file or field, the value, the rule and the remedy.

    The command prints the line on standard error and leaves with status 2; anything else that is raised
    is a bug and leaves with status 1.
    """
