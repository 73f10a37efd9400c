"""`fulfillment accounts`: list the accounts' brakes, stop an account or all, and resume."""

import getpass
import os
import socket
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fulfillment.errors import NotAllowedNow
from fulfillment.terminal import (
    AsJSON,
    dollars,
    err,
    known_account,
    make_context,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from fulfillment.services.context import Context

commands = typer.Typer(help="List accounts and their brakes; stop and resume buying.")

_MOST_HOURS = 24 * 365

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="The account.")]
All = Annotated[bool, typer.Option("--all", help="The switch of all accounts instead.")]


@commands.callback(invoke_without_command=True)
def accounts(command: typer.Context, as_json: AsJSON = False) -> None:
    """List accounts: what stops them, and what they may spend."""
    if command.invoked_subcommand is not None:
        return
    from fulfillment.services import brakes

    context = make_context()
    views = brakes.show_accounts(context)
    if as_json:
        print_json([view.as_json() for view in views])
        return
    table = Table("account", "provider", "buys", "requests/min", "spent in 1 h", "cap")
    for view in views:
        limit = "" if view.requests_per_minute is None else str(view.requests_per_minute)
        spent, cap = dollars(view.spent_last_hour), dollars(view.spend_cap)
        state = brakes.what_stops(view, context.now()) or "yes"
        table.add_row(view.account, view.provider, state, limit, spent, cap)
    if views and views[0].spend_cap_of_all is not None:
        spent, cap = dollars(views[0].spent_last_hour_by_all), dollars(views[0].spend_cap_of_all)
        table.add_row("all together", "", "", "", spent, cap)
    print_table(table)
    if views and views[0].doubted_since and views[0].doubted_until:
        from fulfillment.services import recovery

        err.print(recovery.describe(views[0].doubted_since, views[0].doubted_until))


@commands.command()
def pause(
    reason: Annotated[str, typer.Option(help="Why; kept with who and when.")],
    name: Name = None,
    is_all: All = False,
) -> None:
    """Buy nothing more; what is under way is followed to its end."""
    from fulfillment.services import brakes

    context, account = _chosen(name, is_all)
    before = brakes.stop(context, account, reason, _operator())
    err.print(f"{account or 'all accounts'} paused: nothing new is bought")
    if before is not None:
        err.print(f"this replaces the pause {_told(before.at, before.by, before.reason)}")


@commands.command()
def doubt(
    hours: Annotated[
        float, typer.Option(min=0, max=_MOST_HOURS, help="For how long; 0 ends it.")
    ] = 24.0,
) -> None:
    """After the database was restored: look for each order at its providers before it is bought."""
    from fulfillment.services import recovery

    until = recovery.doubt(make_context(), timedelta(hours=hours))
    if not hours:
        err.print("no order is in doubt any more")
        return
    before = f"{until:%Y-%m-%d %H:%M:%S}"
    err.print(f"each order of before {before} UTC is looked for before it is bought")
    err.print(recovery.ACT)


@commands.command()
def same(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The account.")],
    reason: Annotated[str, typer.Option(help="How you know; kept in the orders' logs.")],
) -> None:
    """Say that an account is the merchant that it was, though its settings say another one."""
    from fulfillment.services import merchants

    context = make_context()
    count = merchants.is_same(context, known_account(context, name), reason, _operator())
    err.print(f"{count} orders that were begun before are followed at {name} from now on")


@commands.command()
def resume(
    name: Name = None,
    is_all: All = False,
    reason: Annotated[str, typer.Option(help="Why; kept with who and when.")] = "",
) -> None:
    """Buy again. An account paused by itself stays so when all are resumed.

    With NAME, its provider is asked again at once also where it had failed, or wished for a pause.
    """
    from fulfillment.services import brakes

    context, account = _chosen(name, is_all)
    what = account or "all accounts"
    ended = brakes.resume(context, account, reason, _operator())
    if ended is not None:
        err.print(f"{what} resumed; paused {_told(ended.at, ended.by, ended.reason)}")
    elif anew := brakes.stop_now(context, account):
        told = _told(anew.at, anew.by, anew.reason)
        raise NotAllowedNow(f"{what} not resumed, but paused anew meanwhile {told}; look again")
    if account and brakes.ask_again(context, account):
        err.print(f"{what}: its provider is asked again from now on")
    elif ended is None:
        err.print(f"{what} had not been paused")
    for view in brakes.show_accounts(context) if is_all else ():
        if view.stopped_at:
            err.print(f"{view.account} stays {brakes.what_stops(view, context.now())}")


def _told(at: datetime, by: str | None, reason: str | None) -> str:
    return f"since {at:%Y-%m-%d %H:%M:%S} UTC by {by}: {reason}"


def _chosen(name: str | None, is_all: bool) -> "tuple[Context, str | None]":
    """Give the command's context, and the account that was named; None for all."""
    if (name is None) != is_all:
        raise typer.BadParameter("expected one of NAME and --all", param_hint="NAME")
    context = make_context()
    return context, None if name is None else known_account(context, name)


def _operator() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
