"""One exception tree, and the exit code that the command line gives each branch.

::

    RobustCompressError            1
    ├── ConfigError                2   a setting is wrong
    ├── DataError                  3   images or labels are not what they must be
    ├── ModelError                 4   the network cannot be used as asked
    │   └── CompactionError        4   removing channels would change the function
    ├── TrainingError              5   training diverged
    ├── StorageError               6   a file cannot be read, written or trusted
    ├── ExportError                7   the exported file is not the network
    ├── RunLockedError             8   another process works in the run folder
    ├── MissingExtraError          9   an optional dependency is not installed
    └── InterruptedRunError      130   stopped by Ctrl-C or SIGTERM; says how to resume
"""


class RobustCompressError(Exception):
    """Root of every error that this library raises on purpose."""

    exit_code = 1


class ConfigError(RobustCompressError):
    """A setting is out of range, unknown or contradicts another one."""

    exit_code = 2


class DataError(RobustCompressError):
    """Images or labels are missing, out of range or of another shape than promised."""

    exit_code = 3


class ModelError(RobustCompressError):
    """The network cannot be pruned, traced or called as asked."""

    exit_code = 4


class CompactionError(ModelError):
    """Removing channels would change what the network computes."""


class TrainingError(RobustCompressError):
    """The loss is no longer a finite number, or memory does not suffice."""

    exit_code = 5


class StorageError(RobustCompressError):
    """A file or folder cannot be read, written or trusted."""

    exit_code = 6


class ExportError(RobustCompressError):
    """An exported file could not be made or does not compute what the network computes."""

    exit_code = 7


class RunLockedError(RobustCompressError):
    """Another process is at work in the run folder."""

    exit_code = 8


class MissingExtraError(RobustCompressError):
    """A feature needs a package that is not installed."""

    exit_code = 9


class LostProcessError(RobustCompressError):
    """Another of the processes that share the training ended or stopped answering."""

    exit_code = 10


class InterruptedRunError(RobustCompressError):
    """The run was stopped by a signal and can be resumed."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return what went wrong as one sentence, for an error of somebody else's that one of these passes on."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}."
