"""The errors that a user can mend, and those that their text tells whole."""


class UserError(Exception):
    """A request that cannot be met as it was made; jobs exit with code 2."""


class NotFetched(UserError):
    """Weights that Keras could not download; another time it may."""


class TaskFailure(Exception):
    """A failure of tasks or ranks, whose text says all that the driver knows; jobs exit with code 1."""
