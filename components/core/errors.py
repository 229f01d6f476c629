"""Errors that users see. Each message is one line with the file, well or field, and what to do."""


class InputError(ValueError):
    """Bad usage or bad input; the command line prints the message and exits with 2."""


class StepError(RuntimeError):
    """A step failed for another reason than its input; the command line exits with 3."""


class ContactError(RuntimeError):
    """A command that follows a run lost contact or reached its deadline; the run may continue. The command line exits with 5."""
