"""History normalisation as an option of a credit scheme."""

from ..credit import HistoryNormalizer


def read_history(history: HistoryNormalizer | bool | None) -> HistoryNormalizer | None:
    """
    Turn the value of the option `history` into a normaliser. `True` means one with its defaults.

    Args:
        history ([`~ccpo.credit.HistoryNormalizer`], `bool` or `None`): The value.

    Returns:
        [`~ccpo.credit.HistoryNormalizer`], or `None` if the option is off.

    Raises:
        `ValueError`: If the value is anything else.
    """
    if history is None or history is False:
        return None
    if history is True:
        return HistoryNormalizer()
    if not isinstance(history, HistoryNormalizer):
        raise ValueError(f"`history` must be true, false or a HistoryNormalizer, got {history!r}.")
    return history
