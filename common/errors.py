"""The one exception for what a user can put right."""

import errno

# What a full disk, a quota or missing rights raise: the user can put them right.
USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}


class UserError(ValueError):
    """Bad input: a file, an option or an array that the user can correct.

    The message is one line that names the file or field, what was expected, what was received and the remedy.
    Entry scripts print it on stderr and end with status 2; everything else keeps its traceback.
    """


def one_line(error: BaseException, most: int | None = None) -> str:
    """What an exception says, on one line of at most `most` characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]
