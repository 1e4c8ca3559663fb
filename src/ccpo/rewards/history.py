"""History normalisation as an option of a credit scheme."""

from ..credit import HistoryNormalizer


def read_history(history: HistoryNormalizer | bool | None) -> HistoryNormalizer | None:
    """
    The normaliser that the value of an option means. `True` means one with its defaults.

    Raises:
        `ValueError`: the value is something else.
    """
    if history is None or history is False:
        return None
    if history is True:
        return HistoryNormalizer()
    if not isinstance(history, HistoryNormalizer):
        raise ValueError(f"`history` must be true, false or a HistoryNormalizer, got {history!r}.")
    return history
