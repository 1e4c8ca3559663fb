"""Errors for clients whose requests cannot be answered, in OpenAI's form."""

from typing import Any

from ...team.prompts import whole_characters


class RequestError(Exception):
    """
    A request that is refused.

    Args:
        message (`str`): What is wrong and what to do.
        status (`int`, defaults to 400): The HTTP status.
        param (`str`, *optional*): The field of the request that is wrong.
        code (`str`, *optional*): OpenAI's code for this error.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the HTTP answer."""
        kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        param = None if self.param is None else whole_characters(self.param)  # a name that the client chose
        return {"error": {"message": whole_characters(str(self)), "type": kind, "param": param, "code": self.code}}


def failed() -> RequestError:
    """The error for a failure of the server. It reveals no details."""
    return RequestError("The team failed to answer. The server's log has the reason.", 500)
