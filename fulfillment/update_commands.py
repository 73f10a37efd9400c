"""`fulfillment updates`: where the store hears of its orders, and what it is to hear again."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from fulfillment.terminal import AsJSON, err, make_context, out, print_json

commands = typer.Typer(help="Show how the store hears of orders; tell it again; forget its queues.")


@commands.callback(invoke_without_command=True)
def updates(command: typer.Context, as_json: AsJSON = False) -> None:
    """Show where the store listens, what waits, and what was told again."""
    if command.invoked_subcommand is not None:
        return
    from fulfillment.services import updates as service

    found = service.show(make_context())
    missing = found.audience.missing_since
    facts: dict[str, Any] = {
        "queues": found.audience.names,
        "missingSince": missing.isoformat() if missing else None,
        "waiting": found.waiting,
        "oldestSeconds": round(found.age.total_seconds()),
        "unread": {each.queue: each.messages for each in found.unread},
    }
    told = [
        {
            "requestedAt": wish.requested_at.isoformat(),
            "reason": wish.reason,
            "since": wish.since.isoformat() if wish.since > service.EVER else None,
            "messages": wish.messages,
            "finishedAt": wish.finished_at.isoformat() if wish.finished_at else None,
        }
        for wish in found.replays
    ]
    if as_json:
        print_json({**facts, "replays": told})
        return
    shown = Table(show_header=False, box=None)
    unread = ", ".join(f"{each.messages} in {each.queue}" for each in found.unread)
    words = {"queues": ", ".join(found.audience.names), "unread": unread}
    for name, value in {**facts, **words}.items():
        shown.add_row(name, "" if value is None else str(value))
    out.print(shown)
    table = Table("told again at", "why", "from", "messages", "until")
    for each in told:
        cells = {**each, "since": each["since"] or "the beginning"}
        table.add_row(*(str(value or "") for value in cells.values()))
    out.print(table)


@commands.command()
def replay(
    since: Annotated[
        str | None, typer.Option(help="ISO time, UTC where it has no zone; all where left out.")
    ] = None,
    order: Annotated[str | None, typer.Option(metavar="ID", help="Only this order.")] = None,
) -> None:
    """Have `fulfillment intake` send the messages to the store again, as they were."""
    from fulfillment.services import updates as service

    if since is None and order is None:
        raise typer.BadParameter("expected --since, --order or both", param_hint="--since")
    count = service.replay(make_context(), _time(since), order)
    err.print(f"{count} order{'s' if count != 1 else ''} will be told of again by intake")


@commands.command()
def forget() -> None:
    """Wait no longer for queues that the store has deleted; what waits for them is dropped."""
    from fulfillment.services import updates as service

    names = service.forget(make_context())
    err.print(f"forgotten: {', '.join(names)}; until the store binds a queue, it is told nothing")


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        expected = "expected a time such as 2026-11-20T12:00"
        raise typer.BadParameter(expected, param_hint="--since") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
