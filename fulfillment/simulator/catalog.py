"""Makes the items on sale: invented ones from a seed, or the names and prices of a price file."""

import hashlib
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

NAMESPACE = uuid.UUID("6f1d5c1e-52a4-4f0a-9f5e-0d2b8c3a7e11")
# fmt: off
WEAPONS = ("AK-47", "AWP", "Desert Eagle", "FAMAS", "Five-SeveN", "Galil AR", "Glock-18",
           "M4A1-S", "M4A4", "MAC-10", "MP7", "MP9", "Nova", "P250", "P90", "SSG 08", "Tec-9",
           "UMP-45", "USP-S", "XM1014")
FINISHES = ("Amber Fade", "Atheris", "Bloodsport", "Case Hardened", "Corticera", "Cortex", "Cyrex",
            "Decimator", "Elite Build", "Fever Dream", "Gamma Doppler", "Guardian", "Hyper Beast",
            "Jungle Dashed", "Kumicho", "Leaded Glass", "Mortis", "Neo-Noir", "Neon Rider",
            "Phantom", "Redline", "Safari Mesh", "Slate", "Urban Hazard")
WEARS = {"Factory New": (0, 700), "Minimal Wear": (700, 1500), "Field-Tested": (1500, 3800),
         "Well-Worn": (3800, 4500), "Battle-Scarred": (4500, 9999)}
RARITIES = ("#b0c3d9", "#5e98d9", "#4b69ff", "#8847ff", "#d32ce6", "#eb4b4b")
# fmt: on


@dataclass(slots=True)
class Item:
    """One concrete item: what it is, what it costs now, and whether it can be bought now."""

    id: str
    name: str
    price_mills: int
    phase: str | None
    float_value: str | None
    paint_index: int | None
    paint_seed: int | None
    rarity_color: str
    class_id: str
    available: bool = True

    @property
    def price_cents(self) -> int:
        """Give the price in cents, rounded up: as a cap, it is enough."""
        return cents_up(self.price_mills)


def cents_up(mills: int) -> int:
    return -(-mills // 10)


class PriceFile(msgspec.Struct):
    prices: dict[str, int]


def missing(item_id: str, name: str) -> Item:
    """Stand for an item that is not on sale, in the record of a purchase that was refused."""
    return Item(item_id, name, 0, None, None, None, None, "", "", available=False)


def _uuid(name: str, index: int) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{name}#{index}"))


def _number(name: str, index: int) -> str:
    return str(88_000 + index)


def _opaque(name: str, index: int) -> str:
    """Give a Steam asset id, or for every fourth item the long hex string that also occurs."""
    if index % 4 != 3:
        return str(40_155_500_000 + index)
    return hashlib.shake_128(f"{name}#{index}".encode()).hexdigest(135)


# What the provider's own ids look like.
IDS: dict[str, Callable[[str, int], str]] = {
    "skinsnode": _uuid,
    "skinsback": _number,
    "skinslink": _opaque,
}


def build(
    count: int,
    prices_file: Path | None,
    seed: int,
    provider: str = "skinsnode",
    *,
    three_decimals: bool = False,
) -> list[Item]:
    """Make the catalog; with a price file every name of it becomes one item."""
    source = random.Random(seed)  # noqa: S311 - a repeatable catalog, not a secret
    named = _read(prices_file) if prices_file else _invent(count, source)
    items = [_item(index, name, cents, source) for index, (name, cents) in enumerate(named)]
    for index, item in enumerate(items):
        item.id = IDS[provider](item.name, index)
        if three_decimals:
            item.price_mills += index * 7 % 10
    return items


def _read(path: Path) -> Iterator[tuple[str, int]]:
    try:
        prices = msgspec.json.decode(path.read_bytes(), type=PriceFile).prices
    except msgspec.DecodeError as error:
        raise ValueError(f'{path}: expected {{"prices": {{name: cents}}}}, {error}') from error
    return iter(prices.items())


def _invent(count: int, source: random.Random) -> Iterator[tuple[str, int]]:
    wears = tuple(WEARS)
    for _ in range(count):
        weapon, finish, wear = map(source.choice, (WEAPONS, FINISHES, wears))
        # Most skins cost a few dollars, a few cost hundreds.
        yield (
            f"{weapon} | {finish} ({wear})",
            min(200_000, 5 + int(source.lognormvariate(6.2, 1.2))),
        )


def _item(index: int, name: str, cents: int, source: random.Random) -> Item:
    # Cases, stickers and agents have no wear in their name, and so neither float nor paint.
    wear = WEARS.get(name.rpartition(" (")[2].removesuffix(")"))
    return Item(
        id="",
        name=name,
        price_mills=cents * 10,
        phase=f"Phase {source.randint(1, 4)}" if "Doppler" in name else None,
        float_value=f"0.{source.randint(*wear):04d}" if wear else None,
        paint_index=source.randint(1, 1200) if wear else None,
        paint_seed=source.randint(0, 1000) if wear else None,
        rarity_color=source.choice(RARITIES),
        class_id=str(4_141_780_000 + index),
    )
