"""Problems a user can put right. Their text is the whole message: the command line prints it and exits with code 2."""


class UserError(Exception):
    """A missing folder, a corrupt file, an unwritable output, a loss that is no number... one sentence saying what."""


class ConfigError(UserError, ValueError):
    """A setting with a value that is not allowed: the text names the setting, the value and what is allowed.

    With ``setting``, ``text`` says the rest, and the command line names the option in its place.
    """

    def __init__(self, text: str, setting: str | None = None):
        super().__init__(text if setting is None else f"{setting}: {text}")
        self.text, self.setting = text, setting


class NotFinite(UserError):
    """A loss, or what trains, is NaN or infinite."""


class OutputLost(UserError):
    """Standard output takes nothing more: its device is full, or its reader gone."""


class Interrupted(Exception):
    """Training was stopped by a signal after its state had been saved; the text says where. Exit code 130."""


def reason(error: OSError) -> str:
    """The operating system's words without the file name, which the caller's sentence gives already."""
    return error.strerror or str(error) or type(error).__name__
