"""
The ratings of SEPO: how a role is asked for a rating, and how its reply is read.

When an answer has been judged, each role divides the credit for a right answer, or the blame for a wrong one, among
all roles ([arXiv 2603.21563](https://huggingface.co/papers/2603.21563)). In a team of two it chooses one of nine
pairs of shares; the first number is the share of the role that speaks first. In a larger team it gives each role one
of nine shares. A reply is free text, or it is chosen among a few texts, which can always be read.
"""

from .choices import (
    RATING_PREFIX,
    SHARE_CHOICES,
    SHARES_END,
    SHARES_PREFIX,
    choose,
    rating_choices,
    role_share_prefix,
    shares_from_log_probs,
)
from .prompts import (
    RATING_PROMPT,
    build_rating_messages,
    check_rating_prompt,
    fill_rating_prompt,
    keep_end,
    rating_question,
)
from .reading import parse_rating, parse_role_shares, parse_shares
from .scale import MAX_RATING_TOKENS, OUTCOMES, PAIRS

__all__ = [
    "MAX_RATING_TOKENS",
    "OUTCOMES",
    "PAIRS",
    "RATING_PREFIX",
    "RATING_PROMPT",
    "SHARES_END",
    "SHARES_PREFIX",
    "SHARE_CHOICES",
    "build_rating_messages",
    "check_rating_prompt",
    "choose",
    "fill_rating_prompt",
    "keep_end",
    "parse_rating",
    "parse_role_shares",
    "parse_shares",
    "rating_choices",
    "rating_question",
    "role_share_prefix",
    "shares_from_log_probs",
]
