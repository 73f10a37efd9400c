"""The bare tools below everything: httpx.Client in threads, psycopg with a commit an insert."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg

THREADS = 16


def get_in_threads(base_url: str, headers: dict[str, str], paths: Sequence[str]) -> float:
    """GET every path with one httpx.Client shared by 16 threads; give requests a second."""
    limits = httpx.Limits(max_connections=THREADS, max_keepalive_connections=THREADS)
    with httpx.Client(base_url=base_url, headers=headers, limits=limits, trust_env=False) as client:

        def get(path: str) -> None:
            client.get(path).raise_for_status().json()

        with ThreadPoolExecutor(THREADS) as executor:
            began = time.perf_counter()
            list(executor.map(get, paths))
            return len(paths) / (time.perf_counter() - began)


def insert_per_commit(address: str, count: int) -> float:
    """Insert checkouts one by one on one connection, a commit each; give rows a second."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS raw_checkouts (id bigserial PRIMARY KEY, external_id text "
            "UNIQUE, item_id text, price int, trade_url text, status text, "
            "created_at timestamptz DEFAULT now())"
        )
        url = "https://steamcommunity.com/tradeoffer/new/?partner=123456789&token=Kq7-x_2z"
        prefix = time.time_ns()
        began = time.perf_counter()
        for place in range(count):
            connection.execute(
                "INSERT INTO raw_checkouts (external_id, item_id, price, trade_url, status) "
                "VALUES (%s, %s, %s, %s, 'received')",
                [f"{prefix}-{place}", "0b0f4f0e-7c1e-4d0e-9a51-0d6c5a6c7f10", 612, url],
            )
        return count / (time.perf_counter() - began)
