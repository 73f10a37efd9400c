"""The `fulfillment` command. Exit 0 success, 1 refused or failed, 2 wrong usage.

Each command imports only its own part: a worker needs no web framework, and starts sooner.
"""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from fulfillment import account_commands, checkout_file, log, update_commands
from fulfillment.clock import time_of_day
from fulfillment.errors import FulfillmentError, InvalidInput
from fulfillment.settings import Settings, load_settings
from fulfillment.terminal import (
    AsJSON,
    dollars,
    err,
    known_names,
    make_context,
    make_usable,
    out,
    print_json,
    print_table,
    printing,
)
from schemas.enums import OrderStatus
from schemas.orders import OrderView

cli = typer.Typer(
    name="fulfillment",
    help="Order fulfilment for stores that sell CS2 skins.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(account_commands.commands, name="accounts")
cli.add_typer(update_commands.commands, name="updates")


def _settings() -> Settings:
    settings = load_settings()
    log.configure(settings.log_level, settings.log_format)
    return settings


# Processes


@cli.command()
def up() -> None:
    """Run everything in the foreground; embeds what has no address configured."""
    from fulfillment.devstack.stack import run_up

    raise SystemExit(run_up(load_settings(for_new_stack=True)))


@cli.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave the stack running at the end.")] = False,
    prices: Annotated[Path | None, typer.Option(help="A file of real names and prices.")] = None,
) -> None:
    """Run a scripted mix of checkouts to their true ends and compare the books."""
    from fulfillment.devstack.demo import run_demo

    settings = load_settings(for_new_stack=True)
    raise SystemExit(run_demo(settings, keep=keep, prices=prices))


@cli.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    from fulfillment.store.engine import Database
    from fulfillment.store.migrate import migrate as run

    settings = _settings()
    settings.require("database_url")
    is_ours = run(Database(settings.database_url.get_secret_value(), pool_size=1))
    newer = "the schema is newer than this version: it serves as it is, nothing to do"
    err.print("the schema is up to date" if is_ours else newer)


@cli.command()
def worker(
    name: Annotated[str, typer.Option(help="The worker's name, unique on its machine.")] = "",
    queues: Annotated[str, typer.Option(help="Queues, by commas; all where not given.")] = "",
) -> None:
    """Run a Celery worker; any number may, on any machine."""
    import os

    from fulfillment.broker import app
    from fulfillment.services.context import build_context

    settings = _settings()
    queues = known_names(queues, app.amqp.queues, "--queues")
    settings.require("broker_url")
    # A wrong setting is told here and now; the tasks make a context of their own.
    build_context(settings).close()
    arguments = [
        *("worker", "--pool=threads", f"--concurrency={settings.worker_threads}"),
        *("-n", f"{name or f'w{os.getpid()}'}@%h", "--without-gossip", "--without-mingle"),
    ]
    if queues:
        arguments.append(f"--queues={queues}")
    _run_celery(app, settings, arguments)


@cli.command()
def beat() -> None:
    """Run the periodic ticks; two of them change nothing."""
    from fulfillment.broker import app

    settings = _settings()
    settings.require("broker_url")
    # Beat has a connection of its own, and would not notice that nobody hears it.
    app.conf.broker_transport_options |= {"confirm_publish": True}
    # Kept in memory: a tick has no state, and two beats must not share a file.
    _run_celery(app, settings, ["beat", "--scheduler=celery.beat.Scheduler"])


@cli.command()
def flower() -> None:
    """Run Flower behind its password, read-only unless configured otherwise."""
    import os

    from fulfillment.broker import app

    settings = _settings()
    settings.require("broker_url", "flower_basic_auth")
    # Not an argument: those can be read by every user of the machine.
    os.environ["FLOWER_BASIC_AUTH"] = settings.flower_basic_auth.get_secret_value()
    # Flower's own variable; a container sets it, since there loopback is reached by nobody.
    os.environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")
    arguments = [
        *("flower", f"--port={settings.flower_port}"),
        *("--max-tasks=20000", "--purge-offline-workers=300"),
        "--tasks-columns=name,uuid,state,args,received,started,runtime,worker",
    ]
    if settings.flower_read_only:
        arguments.append("--read-only")
    _run_celery(app, settings, arguments)


def _run_celery(app: Any, settings: Settings, arguments: Sequence[str]) -> None:
    import signal

    from celery import signals
    from celery.apps import worker as program

    from fulfillment.broker import require_access

    require_access(settings)
    log.outlive_a_full_disk()
    workers: list[Any] = []
    signals.setup_logging.connect(
        lambda **_: log.configure(settings.log_level, settings.log_format), weak=False
    )
    signals.worker_init.connect(lambda sender, **_: workers.append(sender), weak=False)
    # Celery would begin anew, by a command that there is not. What nohup ignores stays ignored.
    vars(program).update(install_worker_restart_handler=lambda _worker: None)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    # Celery's command line reads sys.argv in places, and quotes it in its banner.
    sys.argv = ["fulfillment", *arguments]
    app.start(argv=list(arguments))
    # Celery ends a worker that dies of an error as any other, and drops its exit code.
    if any(each.exitcode for each in workers):
        raise SystemExit(1)


@cli.command()
def web() -> None:
    """Run the web process: intake, reads, webhooks, health and metrics."""
    from fulfillment.web.app import serve

    log.outlive_a_full_disk()
    serve(_settings())


@cli.command()
def intake() -> None:
    """Run the consumer of the store's exchange and the relay of order updates."""
    from fulfillment.messaging.intake import run

    log.outlive_a_full_disk()
    run(_settings())


@cli.command()
def simulator(
    provider: Annotated[str, typer.Option(help="skinsnode, skinsback or skinslink.")] = "skinsnode",
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535)] = 8090,
    speed: Annotated[float, typer.Option(help="How much faster than life.")] = 1.0,
    items: Annotated[int, typer.Option(min=1, help="Size of the generated catalog.")] = 2000,
    prices: Annotated[Path | None, typer.Option(help="Names and prices instead.")] = None,
    balance_cents: Annotated[int, typer.Option(help="The wallet's opening balance.")] = 1_000_000,
    client_id: Annotated[str, typer.Option(envvar="FULFILLMENT_SIMULATOR_CLIENT_ID")] = "sim",
    webhook_url: Annotated[
        str | None,
        typer.Option(
            envvar="FULFILLMENT_SIMULATOR_WEBHOOK_URL",
            help="The account's own, for providers that take none with the order.",
        ),
    ] = None,
    hold_s: Annotated[float | None, typer.Option(help="Length of the trade's hold.")] = None,
    three_decimals: Annotated[bool, typer.Option(help="Prices of no whole cents.")] = False,
    accounts: Annotated[
        bool, typer.Option("--accounts", help="Play the provider of every configured account.")
    ] = False,
) -> None:
    """Run the provider simulator; its secret is FULFILLMENT_SIMULATOR_CLIENT_SECRET.

    Skinslink's key is FULFILLMENT_SIMULATOR_API_KEY.
    """
    import os

    from fulfillment.simulator.app import SimulatorOptions, serve
    from fulfillment.simulator.options import for_accounts

    log.outlive_a_full_disk()
    log.configure("INFO")
    common = {
        "hold_s": hold_s,
        "three_decimals": three_decimals,
        "host": host,
        "port": port,
        "speed": speed,
        "items": items,
        "prices_file": prices,
        "balance_cents": balance_cents,
    }
    one = {
        "provider": provider,
        "webhook_url": webhook_url,
        "client_id": client_id,
        "client_secret": os.environ.get("FULFILLMENT_SIMULATOR_CLIENT_SECRET", "sim-secret"),
        "api_key": os.environ.get("FULFILLMENT_SIMULATOR_API_KEY", "sim-api-key"),
    }
    try:
        players = (
            for_accounts(load_settings(), **common)
            if accounts
            else [SimulatorOptions(**one, **common)]  # type: ignore[arg-type]
        )
        serve(*players, on_bound=lambda url: err.print(f"simulator on {url}"))
    except (ValueError, OSError) as error:
        raise InvalidInput(None, str(error)) from None


# What a store's developer and an operator use


@cli.command()
def checkout(
    file: Annotated[str, typer.Argument(help="One JSON object, or JSON lines; - is stdin.")],
    as_json: AsJSON = False,
) -> None:
    """Take checkouts in from a file, as the other ways in do."""
    from rich.progress import track

    from fulfillment.broker import hint
    from fulfillment.services import intake as service
    from schemas.messages import DISPATCH

    lines = checkout_file.read(file)
    raws = [line.event for line in lines]
    context = make_context()
    groups = [raws[i : i + service.MAX_BATCH] for i in range(0, len(raws), service.MAX_BATCH)]
    results: list[service.Received] = []
    for group in track(groups, "checkouts", console=err, disable=not err.is_terminal):
        good = [raw for raw in group if not isinstance(raw, InvalidInput)]
        answers = iter(service.receive_raw(context, good))
        taken = [
            service.Received(None, error=raw) if isinstance(raw, InvalidInput) else next(answers)
            for raw in group
        ]
        # Without an address Celery would look for a broker on this machine.
        has_broker = bool(context.settings.broker_url.get_secret_value())
        for account in service.new_accounts(taken) if has_broker else ():
            hint(DISPATCH, account)
        results += taken
    refused = [r for r in results if r.error is not None]
    if as_json:
        print_json(
            [
                {"externalId": r.external_id, "error": str(r.error), "line": line.number}
                if r.error
                else {"externalId": r.external_id, "status": r.status}
                for line, r in zip(lines, results, strict=True)
            ]
        )
    else:
        for told in checkout_file.refusals(lines, results):
            err.print(told, style="red")
        new = sum(r.is_new for r in results)
        known = len(results) - len(refused) - new
        out.print(f"{new} new, {known} known before, {len(refused)} refused")
    context.close()
    if refused:
        raise typer.Exit(1)


@cli.command()
def orders(
    status: Annotated[OrderStatus | None, typer.Option(help="Only these.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    as_json: AsJSON = False,
) -> None:
    """List orders, newest first."""
    from fulfillment.services import operations

    context = make_context()
    views, _ = operations.page(context, status=status, limit=limit)
    if as_json:
        print_json([view.as_json() for view in views])
        return
    names = ("order", "account", "status", "agreed", "charged", "deadline (UTC)", "failure")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for view in views:
        table.add_row(*_row(view, context.now()))
    out.print(table)


def _row(view: OrderView, now: datetime) -> Iterable[str]:
    return (
        view.external_id,
        view.account,
        view.status.value + (" (overdue)" if view.overdue else ""),
        dollars(view.expected_price),
        dollars(view.charged_price),
        time_of_day(view.trade_deadline, now) if view.trade_deadline else "",
        f"{view.failure.code} ({view.failure.by})" if view.failure else "",
    )


@cli.command()
def order(
    order_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: AsJSON = False,
) -> None:
    """Show one order with its timeline."""
    from fulfillment.services import operations

    view = operations.show(make_context(), order_id)
    if as_json:
        print_json(view.as_json())
        return
    facts = Table(show_header=False, box=None)
    for name, value in view.as_json().items():
        if name not in ("timeline", "failure") and value not in (None, False):
            facts.add_row(name, str(value))
    if view.failure:
        facts.add_row("failure", f"{view.failure.code} ({view.failure.by}): {view.failure.message}")
    out.print(facts)
    table = Table("at (UTC)", "by", "from", "to", "note")
    for entry in view.timeline:
        at = entry.at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        table.add_row(at, entry.source, entry.from_ or "", entry.to, entry.note)
    out.print(table)


@cli.command()
def wallet(as_json: AsJSON = False) -> None:
    """Show every account's money."""
    from fulfillment.services import operations

    context = make_context()
    views = operations.wallets(context)
    if as_json:
        print_json([view.as_json() for view in views])
        return
    money = ("balance", "held", "available", "settled", "refunded", "credited", "unexplained")
    table = Table("account", *money, "paused")
    for view in views:
        until = view.paused_until and time_of_day(view.paused_until, context.now())
        paused = f"until {until} UTC: {view.pause_reason}" if until else ""
        paused = f"by an operator: {view.stop_reason}" if view.stopped_at else paused
        table.add_row(
            view.account,
            *(dollars(getattr(view, name)) for name in money),
            paused,
        )
    print_table(table)


@cli.command()
def reconcile(
    order_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
) -> None:
    """Have the provider asked now about one order, or about all that are under way."""
    from fulfillment.services import operations, reconciliation

    context = make_context()
    if order_id:
        operations.show(context, order_id)
    count = reconciliation.reconcile_now(context, [order_id] if order_id else None)
    out.print(f"{count} order{'s' if count != 1 else ''} will be asked about")


@cli.command()
def resolve(
    order_id: Annotated[str, typer.Argument(metavar="ID")],
    finding: Annotated[str, typer.Option("--as", metavar="found|not-found|cancelled")],
    reason: Annotated[str, typer.Option(help="Why; kept in the order's log.")],
    is_insisted: Annotated[
        bool, typer.Option("--force", help="End it whatever the provider says, unasked.")
    ] = False,
) -> None:
    """End an order's review with what a person found out; the provider is asked first."""
    from fulfillment.services.operations import Resolution
    from fulfillment.services.operations import resolve as run

    if finding not in list(Resolution):
        raise typer.BadParameter(f"expected one of {', '.join(Resolution)}", param_hint="--as")
    resolved = run(make_context(), order_id, Resolution(finding), reason, is_insisted=is_insisted)
    out.print(f"{resolved.external_id} is {resolved.status}")


@cli.command()
def doctor(as_json: AsJSON = False) -> None:
    """Check settings, servers, schema, ticks and every account's credentials."""
    from fulfillment import broker
    from fulfillment.services import diagnosis

    settings = load_settings()
    log.configure("ERROR", settings.log_format)
    has_broker = bool(settings.broker_url.get_secret_value())
    checks = diagnosis.examine(settings, broker.complaint(settings) if has_broker else None)
    if as_json:
        print_json([{"name": c.name, "ok": c.is_ok, "detail": c.detail} for c in checks])
    else:
        table = Table(Column("check", overflow="fold"), "", Column("detail", overflow="fold"))
        for check in checks:
            mark = Text("ok", "green") if check.is_ok else Text("failed", "red")
            table.add_row(check.name, mark, check.detail)
        out.print(table)
    if not all(check.is_ok for check in checks):
        raise typer.Exit(1)


@cli.command()
def token(
    name: Annotated[str, typer.Argument(help="Whose it is; a-z, 0-9, _ and -.")],
    as_json: AsJSON = False,
) -> None:
    """Make an API token: shown once, and the pair to add to FULFILLMENT_API_TOKENS."""
    from fulfillment.web.tokens import generate

    made, pair = generate(name)
    if as_json:
        print_json({"token": made, "pair": pair})
        return
    sys.stdout.write(f"token  {made}\npair   {pair}\n")


@cli.command()
def states() -> None:
    """Print docs/states.md from the transition table."""
    from fulfillment import states as table

    sys.stdout.write(table.render())


def main() -> None:
    """Run the command line; an error that we know is one line, never a stack trace."""
    log.mask_crashes()
    try:
        make_usable(sys.argv)
        with printing():
            cli()
    except FulfillmentError as error:
        err.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
