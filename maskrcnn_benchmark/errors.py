"""Errors that are the user's to mend: each names the thing, its value, where it came from and what to do.

The tools print the message on one line, without a traceback, and exit with the code of the error: 2, where it has no
other. Anything else that is raised is a fault of this package and keeps its traceback.
"""


class UserError(Exception):
    """A mistake in what the user gave us."""

    exit_code = 2  # of a tool that it ends


class ConfigError(UserError):
    """A config key, its value, or a combination of them."""


class DataError(UserError):
    """An annotation file, a picture or a data set entry."""


class PromptError(UserError):
    """Class names or captions that cannot become a prompt."""


class WeightsError(UserError):
    """A checkpoint that is missing, damaged, unsafe or of another model."""


class BackendError(UserError):
    """A library of operators that is installed and does not work here."""
