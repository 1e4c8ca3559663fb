"""
SEPO's ratings: how a role is asked for one, how its reply is read, and how the reply is constrained to be readable.

After the verdict each role divides the credit (right answer) or the blame (wrong answer) over all roles
([arXiv 2603.21563](https://huggingface.co/papers/2603.21563)). In a team of two it chooses one of nine pairs, whose
first number is the share of the role that speaks first; in a larger one it gives every role one of nine shares.
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
