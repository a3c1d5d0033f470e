"""Reading answers of agents as they stream by: whether one of them is a JSON-RPC error."""

from pydantic_core import from_json

# Longer answers are passed on all the same, but no longer looked into.
LONGEST_READ = 8 * 1024 * 1024
_SSE_DATA = b"data:"


class ErrorWatch:
    """Sees every chunk of an answer: one JSON document, JSON lines, or Server-Sent Events."""

    def __init__(self) -> None:
        self.error: str | None = None
        self._line = bytearray()
        self._whole = bytearray()
        self._read_a_line = False

    def see(self, chunk: bytes) -> None:
        """The next chunk."""
        if len(self._whole) <= LONGEST_READ:
            self._whole += chunk
        *lines, rest = (bytes(self._line) + chunk).split(b"\n")
        for line in lines:
            self._look(line)
        self._line = bytearray(rest if len(rest) <= LONGEST_READ else b"")

    def end(self) -> str | None:
        """The message of the first error, if there was one."""
        self._look(bytes(self._line))
        if not self._read_a_line:
            self._look(bytes(self._whole))
        return self.error

    def _look(self, text: bytes) -> None:
        text = text.strip().removeprefix(_SSE_DATA)
        if not text.strip().startswith((b"{", b"[")):
            return
        try:
            found = from_json(text)
        except ValueError:
            return
        self._read_a_line = True
        for answer in found if isinstance(found, list) else [found]:
            error = answer.get("error") if isinstance(answer, dict) else None
            if error is not None and self.error is None:
                self.error = _message(error)


def _message(error: object) -> str:
    """What an error object says, whatever shape it has."""
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else str(error)
