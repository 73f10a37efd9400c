"""The unit of work of a baseline, step by step: what one order needs, and nothing of ours.

Persist the checkout, refresh the catalog, read the wallet, POST the order, persist accepted and
one history row. Each step reads the order by its id and may be run again.
"""

import os
from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx
import psycopg
from psycopg_pool import ConnectionPool

SCHEMA = """
CREATE TABLE orders (
    external_id text PRIMARY KEY, item_id text NOT NULL, expected_price int NOT NULL,
    trade_url text NOT NULL, status text NOT NULL, price int,
    created_at timestamptz NOT NULL DEFAULT now(), accepted_at timestamptz);
CREATE TABLE order_history (
    id bigserial PRIMARY KEY, external_id text NOT NULL REFERENCES orders, status text NOT NULL,
    at timestamptz NOT NULL DEFAULT now());
"""
THREADS = 16


class StepFailed(Exception):
    """The order cannot go on."""


@cache
def client() -> httpx.Client:
    """Give this process's client."""
    return httpx.Client(
        base_url=os.environ["BENCH_PROVIDER_URL"],
        headers={
            "x-client-id": os.environ["BENCH_CLIENT_ID"],
            "x-client-secret": os.environ["BENCH_CLIENT_SECRET"],
        },
        limits=httpx.Limits(max_connections=100, max_keepalive_connections=100),
        timeout=20,
        trust_env=False,
    )


@cache
def pool() -> ConnectionPool[psycopg.Connection[Any]]:
    """Give this process's connections."""
    address = os.environ["BENCH_DATABASE_URL"]
    return ConnectionPool(address, min_size=2, max_size=THREADS + 2, open=True)


def store_checkout(event: dict[str, Any]) -> None:
    with pool().connection() as connection:
        connection.execute(
            "INSERT INTO orders (external_id, item_id, expected_price, trade_url, status) "
            "VALUES (%(externalId)s, %(catalogItemId)s, %(expectedPrice)s, %(tradeUrl)s, "
            "'received') ON CONFLICT DO NOTHING",
            event,
        )


def refresh_catalog(external_id: str) -> None:
    item_id, expected = _read(external_id, "item_id, expected_price")
    items = _get("/v1/catalog")["items"]
    price = next((item["price"] for item in items if item["id"] == item_id), None)
    if price is None or price > expected:
        raise StepFailed(f"{external_id}: the price is {price}, agreed were {expected}")
    _move(external_id, "received", "quoted", price)


def check_wallet(external_id: str) -> None:
    (price,) = _read(external_id, "price")
    if int(_get("/v1/wallet")["availableBalance"]) < price:
        raise StepFailed(f"{external_id}: the wallet is short")
    _move(external_id, "quoted", "reserved", price)


def submit_order(external_id: str) -> dict[str, Any]:
    item_id, price, trade_url = _read(external_id, "item_id, price, trade_url")
    _move(external_id, "reserved", "submitting", price)
    body = {
        "catalogItemId": item_id,
        "expectedPrice": price,
        "externalId": external_id,
        "tradeUrl": trade_url,
    }
    answer = client().post("/v1/orders", json=body).raise_for_status().json()
    return {"externalId": external_id, "status": answer["status"]}


def record_accepted(answer: dict[str, Any]) -> None:
    with pool().connection() as connection:
        moved = connection.execute(
            "UPDATE orders SET status = 'accepted', accepted_at = %s "
            "WHERE external_id = %s AND status = 'submitting'",
            [datetime.now(UTC), answer["externalId"]],
        )
        if moved.rowcount:
            connection.execute(
                "INSERT INTO order_history (external_id, status) VALUES (%s, %s)",
                [answer["externalId"], answer["status"]],
            )


def _get(path: str) -> Any:
    return client().get(path).raise_for_status().json()


def _read(external_id: str, columns: str) -> tuple[Any, ...]:
    with pool().connection() as connection:
        query = f"SELECT {columns} FROM orders WHERE external_id = %s"
        row: tuple[Any, ...] | None = connection.execute(query, [external_id]).fetchone()
    if row is None:
        raise StepFailed(f"{external_id}: no such order")
    return row


def _move(external_id: str, source: str, target: str, price: int) -> None:
    with pool().connection() as connection:
        connection.execute(
            "UPDATE orders SET status = %s, price = %s WHERE external_id = %s AND status = %s",
            [target, price, external_id, source],
        )
