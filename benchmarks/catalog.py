"""The catalog: from the request to the decision about a batch, in CPU time of the one thread."""

import gc
import time
from collections.abc import Callable

import httpx
import msgspec

from benchmarks.bench import Bench
from benchmarks.results import Goal
from benchmarks.stack import CLIENT_ID, CLIENT_SECRET, simulator
from fulfillment.providers.http import HTTPClient
from fulfillment.providers.skinsnode import wire
from fulfillment.providers.skinsnode.client import SkinsNode
from schemas.provider import Want

BATCH = 64


class Item(msgspec.Struct, gc=False):
    """What the bare decode takes of an item."""

    id: str
    price: int


class Catalog(msgspec.Struct):
    """The whole list."""

    items: list[Item]


def measure(bench: Bench) -> None:
    """Quote a batch from the whole catalog, against msgspec's decode of the same bytes."""
    bench.begin(f"catalog of {bench.scale.catalog:,} items")
    parts: dict[str, list[float]] = {"refresh": [], "request": [], "decode": [], "bare": []}
    with simulator(
        bench.servers.data_dir / "logs", items=bench.scale.catalog, latency_s=0
    ) as simulated:
        client = HTTPClient(simulated.url)
        provider = SkinsNode(client, CLIENT_ID, CLIENT_SECRET, [CLIENT_SECRET])
        wants = [Want(item["id"], item["marketHashName"]) for item in simulated.items[:BATCH]]
        wanted = {want.catalog_item_id for want in wants}
        headers = {"x-client-id": CLIENT_ID, "x-client-secret": CLIENT_SECRET}
        body = httpx.get(f"{simulated.url}/v1/catalog", headers=headers, trust_env=False).content
        decoder = msgspec.json.Decoder(Catalog)
        limit = len(body) + 1
        for _ in range(max(bench.scale.rounds, 2) * 2):
            parts["refresh"].append(_cpu_ms(lambda: provider.quote(wants)))
            parts["request"].append(
                _cpu_ms(lambda: client.request("GET", "/v1/catalog", headers=headers, limit=limit))
            )
            parts["decode"].append(_cpu_ms(lambda: wire.read_catalog(body, wanted)))
            parts["bare"].append(_cpu_ms(lambda: decoder.decode(body)))
        provider.close()
    measured = {name: values[1:] for name, values in parts.items()}  # the first warms up
    bench.record(
        "catalog", f"catalog of {bench.scale.catalog:,} items, refresh to decision, CPU", "ms",
        measured["refresh"], "msgspec's bare decode of the same bytes", measured["bare"],
        Goal(2, is_least=False),
        note=f"{len(body) / 1e6:.1f} MB; HTTP alone {min(measured['request']):.1f} ms, "
        f"decode and choice alone {min(measured['decode']):.1f} ms",
    )  # fmt: skip


def _cpu_ms(act: Callable[[], object]) -> float:
    gc.collect()
    began = time.thread_time()
    act()
    return (time.thread_time() - began) * 1000
