"""What can be wrong with a recipient, and the words in which each provider says so.

A recipient has the problem whose token his trade URL carries, or the one set for him by API.
"""

# ruff: noqa: E501 - a row of the table stays on one line

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the table; None where the provider does not notice before the trade is made."""

    name: str
    token: str
    description: str
    check: tuple[int, str] | None  # SkinsBack: error of user_inventory
    offer: tuple[str, str | None]  # SkinsBack: offer_status and error_reason of the purchase
    validation: str | None  # Skinslink: code of the validation error


# fmt: off
_TABLE = (
    Problem("bad_token", "BadToken", "the trade URL's token is wrong", (3, "invalid_trade_token"), ("invalid_trade_token", None), "trade_link_invalid"),
    Problem("revoked_token", "OldToken", "the trade URL was made anew", (3, "invalid_trade_token"), ("invalid_trade_token", None), "trade_link_revoked"),
    Problem("cannot_trade", "CantTrad", "the account may not trade", (5, "user_not_tradable"), ("user_not_tradable", "user_cant_trade"), "permissions"),
    Problem("trade_ban", "TradeBan", "the account is banned from trading", (5, "user_not_tradable"), ("user_not_tradable", "user_trade_ban"), "trade_banned"),
    Problem("limited", "LimitedA", "the account is limited", (5, "user_not_tradable"), ("user_not_tradable", "user_cant_trade"), "limited_account"),
    Problem("trade_hold", "HoldAcct", "trades of the account are put on hold", (5, "user_not_tradable"), ("user_not_tradable", "user_cant_trade"), "hold"),
    Problem("hold_and_ban", "HoldPerm", "trades on hold, and not permitted", (5, "user_not_tradable"), ("user_not_tradable", "user_cant_trade"), "hold_and_permissions"),
    Problem("private", "PrivateI", "the inventory is hidden", (6, "user_inventory_is_hidden"), ("trade_create_error", "private_inventory"), "profile_private"),
    Problem("full", "FullInvt", "the inventory is full", None, ("trade_create_error", "user_inventory_is_full"), None),
    Problem("failed_often", "TooOften", "too many failed withdrawals before", None, ("trade_create_error", "too_many_failed_attempts"), None),
    Problem("unreadable", "NoInvent", "the inventory cannot be read now", (7, "user_inventory_is_unavailable"), ("trade_create_error", None), None),
)
# fmt: on

PROBLEMS = {problem.name: problem for problem in _TABLE}
BY_TOKEN = {problem.token: problem for problem in _TABLE}
