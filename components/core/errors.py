"""The errors a user can cause. Each message is one line that names the file, well or field and what to do."""


class InputError(ValueError):
    """Bad usage or bad input; the command line prints its message and exits with 2."""


class StepError(RuntimeError):
    """A step failed for a reason that is not the input; the command line exits with 3."""


class ContactError(RuntimeError):
    """Whoever waited lost contact or ran out of time, and the run may go on; the command line exits with 5."""
