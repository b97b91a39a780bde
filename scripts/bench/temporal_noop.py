"""Workflows a second of Temporal, each of one activity that does nothing.

It is asked by several numbers of callers, for its rate does not grow with them, and the best rate counts.

Usage: temporal_noop.py HOST:PORT SECONDS OUTSTANDING OURS
"""

import asyncio
import os
import sys
import time
import uuid
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

QUEUE = "noop"
BAR = 100
FEWER = [8, 32, 128, 512]


@activity.defn
async def nothing() -> None:
    pass


@workflow.defn
class Noop:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(nothing, start_to_close_timeout=timedelta(seconds=60))


async def connect(address: str) -> Client:
    for _ in range(300):
        try:
            return await Client.connect(address)
        except RuntimeError:
            await asyncio.sleep(0.1)
    raise SystemExit(f"no Temporal at {address}")


async def measure(client: Client, seconds: float, outstanding: int) -> float:
    """Ends a second with so many outstanding."""
    ended = 0
    stop = False

    async def caller() -> None:
        nonlocal ended
        while not stop:
            await client.execute_workflow(Noop.run, id=str(uuid.uuid4()), task_queue=QUEUE)
            ended += 1

    callers = [asyncio.create_task(caller()) for _ in range(outstanding)]
    # Until the first have gone all the way.
    began = time.monotonic()
    while ended == 0 and time.monotonic() - began < 60:
        await asyncio.sleep(0.1)
    await asyncio.sleep(seconds / 4)
    before, began = ended, time.monotonic()
    await asyncio.sleep(seconds)
    rate = (ended - before) / (time.monotonic() - began)
    stop = True
    # What is under way must not take anything from what is measured next.
    await asyncio.wait(callers, timeout=60)
    for left in callers:
        left.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return rate


async def main(address: str, seconds: float, outstanding: int, ours: float) -> None:
    client = await connect(address)
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[Noop],
        activities=[nothing],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_concurrent_workflow_tasks=outstanding,
        max_concurrent_activities=outstanding,
    )
    print("# Temporal's dev server, database in a file, its own client and worker")
    best = 0.0
    async with worker:
        for callers in [*(few for few in FEWER if few < outstanding), outstanding]:
            rate = await measure(client, seconds, callers)
            best = max(best, rate)
            print(f"{rate:>8.1f} workflows/s of one activity, {callers} outstanding", flush=True)
    if best > 0:
        ratio = ours / best
        met = "met" if ratio >= BAR else "MISSED"
        print(f"bar: {BAR} times as many tasks as its best: {ratio:.0f} times, {met}")


asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
sys.stdout.flush()
# Not by the interpreter's own end, which the client's native threads at times make it abort in.
os._exit(0)
