"""What happens at a time of its own: in the market, to our clock, and to the system as a whole.

What is done to the system ends by itself: what was stopped is resumed, settings are put back, and
after a restore the store sends again what it had sent.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from fulfillment.errors import FulfillmentError
from fulfillment.services import brakes
from fulfillment.services.context import register_accounts
from fulfillment.settings import Settings
from tests.faults.market import Account
from tests.faults.scheduler import Process

if TYPE_CHECKING:
    from tests.faults.world import World

#: How far back the backup lies, and how long an account is stopped or missing, in seconds. An
#: account is missed by the product once no process has had it for five minutes.
_BACKUP_AGE_S = (1.0, 180.0)
_STOPPED_S = (5.0, 300.0)
_MISSING_S = (5.0, 900.0)
_PERSON_TRIES_AGAIN_S = 5.0


_SET_SEQUENCES = """
    DO $$
    DECLARE owned record;
    BEGIN
        FOR owned IN
            SELECT d.objid::regclass AS sequence, a.attrelid::regclass AS of, a.attname
              FROM pg_depend d JOIN pg_sequence s ON s.seqrelid = d.objid
              JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
             WHERE d.deptype IN ('a', 'i')
        LOOP
            EXECUTE format('SELECT setval(%L, coalesce(max(%I), 0) + 1, false) FROM %s',
                           owned.sequence, owned.attname, owned.of);
        END LOOP;
    END $$
"""


class Happenings:
    """Plans and does those that the seed drew."""

    def __init__(self, world: "World", tables: str) -> None:
        self._world = world
        self._tables = tables.split(", ")

    def plan(self) -> None:
        """Set the times; called once, before anything happens."""
        world = self._world
        in_markets: dict[str, Callable[[Account], None]] = {
            "price_moved": self._move_price,
            "clock_jumped": self._jump,
            "item_sold": self._sell_item,
            "foreign_spending": self._spend,
        }
        for name in sorted(set(in_markets) & set(world.plan.kinds)):
            for _ in range(world.source.randint(1, 4)):
                at = world.scheduler.now + world.source.uniform(0, world.plan.faults_until)
                account = world.accounts[world.source.choice(sorted(world.accounts))]
                world.scheduler.at(at, partial(in_markets[name], account))
        upheavals: dict[str, Callable[[], None]] = {
            "stopped": self._stop,
            "settings_changed": self._take_out,
            "rows_lost": self._back_up,
        }
        for name in sorted(set(upheavals) & set(world.plan.kinds)):
            at = world.scheduler.now + world.source.uniform(0, world.plan.faults_until)
            world.scheduler.at(at, upheavals[name])

    # The market and our clock

    def _jump(self, account: Account) -> None:
        """Set our clock wrong for a while."""
        del account
        world = self._world
        world.clock.offset = timedelta(seconds=world.source.uniform(-600, 600))
        world.faults.note("clock_jumped")

        def set_right() -> None:
            world.clock.offset = timedelta()

        world.scheduler.at(world.scheduler.now + world.source.uniform(1, 90), set_right)

    def _move_price(self, account: Account) -> None:
        world = self._world
        for item in world.source.sample(list(account.market.items.values()), 10):
            factor = world.source.choice((50, 90, 105, 130))
            account.market.change_item(item, price_mills=item.price_mills * factor // 1000 * 10)
        world.faults.note("price_moved")

    def _sell_item(self, account: Account) -> None:
        world = self._world
        for item in world.source.sample(list(account.market.items.values()), 6):
            account.market.change_item(item, available=False)
        world.faults.note("item_sold")

    def _spend(self, account: Account) -> None:
        world, market = self._world, account.market
        mills = -int(max(market.balance_mills - market.reserved_mills, 0) * world.source.random())
        market.move_money("foreign_spending", mills)
        world.foreign_mills[account.name] = world.foreign_mills.get(account.name, 0) + mills
        world.faults.note("foreign_spending")

    # A person at the switch

    def _stop(self) -> None:
        world = self._world
        account = world.source.choice([None, *sorted(world.accounts)])
        world.faults.note("stopped")
        self._until_done(partial(brakes.stop, world.context, account, "looks odd", "person"))
        resume = partial(brakes.resume, world.context, account, "looked at it", "person")
        at = world.scheduler.now + world.source.uniform(*_STOPPED_S)
        world.scheduler.at(at, partial(self._until_done, resume))

    def _see_to_stops(self) -> None:
        """Do what a person is told to do after a restore; those of the backup are over as well."""
        for account in [None, *self._world.accounts]:
            resume = partial(brakes.resume, self._world.context, account, "is over", "person")
            self._until_done(resume)

    def _until_done(self, act: Callable[[], object]) -> None:
        world = self._world

        def attempt() -> None:
            try:
                act()
            except FulfillmentError:
                again = partial(self._until_done, act)
                world.scheduler.at(world.scheduler.now + _PERSON_TRIES_AGAIN_S, again)

        world.scheduler.spawn(Process("person"), "person", attempt)

    # Other settings

    def _take_out(self) -> None:
        """Have all processes start anew without one account, and later with it again."""
        world, known = self._world, self._world.context.settings
        if len(known.accounts) < 2:  # what buys nothing at all is no settings
            return
        gone = world.source.choice(sorted(known.accounts))
        left = {name: each for name, each in known.accounts.items() if name != gone}
        routes = {r: tuple(n for n in names if n != gone) for r, names in known.routes.items()}
        world.faults.note("settings_changed")
        self._restart(known.model_copy(update={"accounts": left, "routes": routes}))
        at = world.scheduler.now + world.source.uniform(*_MISSING_S)
        world.scheduler.at(at, partial(self._restart, known))

    def _restart(self, settings: Settings) -> None:
        """Let every process end and begin anew: with these settings, and no memory of its own."""
        world = self._world
        for process in [*world.workers, world.web]:
            world.replace(process, 0.0)
        world.forget(settings)
        with world.faults.off():
            register_accounts(world.context)

    # A backup that is read back

    def _back_up(self) -> None:
        world = self._world
        for name in self._tables:
            world.sql.execute(
                f"DROP TABLE IF EXISTS backup_{name}; CREATE TABLE backup_{name} AS TABLE {name}"
            )
        age_s = world.source.uniform(*_BACKUP_AGE_S)
        world.scheduler.at(world.scheduler.now + age_s, self._read_back)

    def _read_back(self) -> None:
        """Put what the backup has in the place of our rows; the server is another one then."""
        world = self._world
        world.faults.note("rows_lost")
        world.lost_at = world.clock.now()
        for process in [*world.workers, world.web]:
            world.replace(process, 0.0)
        world.empty()
        world.sql.execute("SET session_replication_role = replica")
        for name in self._tables:
            world.sql.execute(f"INSERT INTO {name} SELECT * FROM backup_{name}")
            world.sql.execute(f"DROP TABLE backup_{name}")
        world.sql.execute("RESET session_replication_role")
        world.sql.execute(_SET_SEQUENCES)
        world.sql.execute("UPDATE accounts SET server = 'the one before'")
        world.forget(world.context.settings)
        with world.faults.off():
            register_accounts(world.context)
        self._see_to_stops()
        sent = [each for each in world.plan.orders if each.external_id in world.acknowledged]
        world.acknowledged.clear()
        for order in sent:
            world.check_out(world.event_of(order))
