"""The errors that a user can mend."""


class UserError(Exception):
    """A request that cannot be met as it was made; jobs exit with code 2."""


class NotFetched(UserError):
    """Weights that Keras could not download; another time it may."""
