"""Refusals: what a request is told that is not answered."""


class Refused(Exception):
    """A request that is not answered: an HTTP status, one sentence, and after how many seconds to ask again."""

    def __init__(self, status: int, message: str, retry_after: int = 0):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}
