"""What a client is told of a request that cannot be answered, in OpenAI's form."""

from typing import Any

from ...team.prompts import whole_characters


class RequestError(Exception):
    """
    A request that is refused.

    Args:
        message (`str`): what is wrong, and the remedy.
        status (`int`, defaults to 400): of HTTP.
        param (`str`, *optional*): the field of the request.
        code (`str`, *optional*): OpenAI's word for it.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        param = None if self.param is None else whole_characters(self.param)  # a name that the client chose
        return {"error": {"message": whole_characters(str(self)), "type": kind, "param": param, "code": self.code}}


def failed() -> RequestError:
    """The error of the server's own: nothing of the inside shows."""
    return RequestError("The team failed to answer. The server's log has the reason.", 500)
