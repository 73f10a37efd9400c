"""The store of a baseline: `python -m benchmarks.baselines.store MODULE`.

For each line `PREFIX COUNT` on stdin it takes that many checkouts in: stores each, as the product's
intake does, and has MODULE start its order. Answers with the time of the first.
"""

import json
import sys
import time
from importlib import import_module

from benchmarks.baselines import work
from benchmarks.checkouts import checkout

CATALOG = 2000


def main(module: str) -> None:
    """Serve stdin to its end; the no-op chain has no order to store."""
    send = import_module(f"benchmarks.baselines.{module}").send
    items = work.client().get("/_sim/items", params={"limit": CATALOG}).json()["items"]
    for line in sys.stdin:
        prefix, count = line.split()
        began = time.time()
        for place in range(int(count)):
            event = checkout(prefix, place, items)
            if module != "noop_chain":
                work.store_checkout(event)
            send(event["externalId"])
        sys.stdout.write(json.dumps({"began": began}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
