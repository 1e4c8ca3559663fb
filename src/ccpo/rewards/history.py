"""History normalisation as an option of an allocator."""

from ..credit import HistoryNormalizer


def read_history(history: HistoryNormalizer | bool | None) -> HistoryNormalizer | None:
    """
    A normaliser of an option's value; `True` is one with its defaults.

    Raises:
        `ValueError`: something else.
    """
    if history is None or history is False:
        return None
    if history is True:
        return HistoryNormalizer()
    if not isinstance(history, HistoryNormalizer):
        raise ValueError(f"`history` must be true, false or a HistoryNormalizer, got {history!r}.")
    return history
