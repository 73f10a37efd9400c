"""The benchmarks that start few processes still run, at tiny numbers; the others do by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import catalog, reconcile, steps
from benchmarks.bench import QUICK, Bench
from benchmarks.results import Goal, Results, Row
from benchmarks.servers import Servers


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    scale = replace(
        QUICK, batch_sizes=(1, 8), catalog=500, small_table=50, large_table=200, due=(20,)
    )
    with Servers(tmp_path_factory.mktemp("bench")) as servers:
        yield Bench(servers, scale, Results())


def test_every_step_of_the_chain_is_measured(bench: Bench) -> None:
    steps.measure(bench)

    found = bench.results.series["steps"]
    assert {name for _, name, *_ in found} >= {"intake", "refresh_catalog", "submit_orders"}
    assert all(cpu_ms > 0 and statements > 0 for _, _, cpu_ms, statements, _ in found)


def test_a_tick_and_a_catalog_are_measured_against_their_baselines(bench: Bench) -> None:
    reconcile.measure_table(bench)
    catalog.measure(bench)

    assert {"tick-20", "catalog"} <= bench.results.rows.keys()


def test_a_ratio_is_the_median_of_its_rounds(tmp_path: Path) -> None:
    row = Row("k", "t", "u", [1.0, 9.0, 4.0], "b", [1.0, 3.0, 1.0], Goal(3))
    file = tmp_path / "results.json"

    Results({"k": row}).save(file)

    (kept,) = Results.load(file).rows.values()
    assert kept == row
    assert kept.ratio == 3.0
    assert kept.is_met
