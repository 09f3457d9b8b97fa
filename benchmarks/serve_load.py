"""Many clients of both tasks against one server on loopback, beside one request at a time; what a client waits, and memory.

    python -m benchmarks.serve_load

The server is a process of its own (`unidecouple serve`), the clients are another: wall seconds, since what a client waits is
wall time. Ends by itself: after the last request, or after ``--limit`` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.record import Result, Row
from unidecouple.batch import Task
from unidecouple.generate.engine import Engine

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
LOADS = 6
QUESTIONS = ("Is there a cow in the image?", "What is this?", "How many pigs are there?", "Describe the image.")


@dataclass(frozen=True)
class Load:
    """What came of one load.

    Attributes:
        seconds: from the first request to the last response.
        waits: wall seconds of each response, by task.
        statuses: how many responses had which.
    """

    seconds: float
    waits: dict[Task, list[float]]
    statuses: dict[int, int]

    def rows(self, name: str) -> list[Row]:
        """Throughput, and the median and the 95th percentile of the waits."""
        total = sum(map(len, self.waits.values()))
        rows = [Row(f"{name}: requests a second", total / self.seconds, "/s")]
        for task, waits in self.waits.items():
            rows += [Row(f"{name}: {task.key} p{q}", float(np.percentile(waits, q)), "s") for q in (50, 95)]
        return rows


def body(task: Task, number: int) -> tuple[str, dict[str, Any]]:
    """Request ``number`` of a task: a question about a noisy image, or an image."""
    if task is Task.T2I:
        return IMAGES, {"prompt": f"a photo of {('a red cow', 'two blue pigs', 'a cup')[number % 3]}", "seed": number}
    noise = Image.fromarray(np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    content = io.BytesIO()
    noise.save(content, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}]
    return CHAT, {"model": "unified", "messages": [{"role": "user", "content": parts}], "max_tokens": 16, "seed": number}


async def load(url: str, clients: int, each: int, limit: float) -> Load:
    """``clients`` at a time, half of each task (one alone takes turns), ``each`` requests one after the other."""
    waits: dict[Task, list[float]] = {task: [] for task in Task}
    statuses: dict[int, int] = {}

    async def one(http: httpx.AsyncClient, client: int) -> None:
        for turn in range(each):
            task = tuple(Task)[(client + (turn if clients == 1 else 0)) % len(Task)]
            path, asked = body(task, client * each + turn)
            began = time.perf_counter()
            reply = await http.post(path, json=asked)
            waits[task].append(time.perf_counter() - began)
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1

    async with httpx.AsyncClient(base_url=url, timeout=limit, limits=httpx.Limits(max_connections=clients)) as http:
        began = time.perf_counter()
        await asyncio.wait_for(asyncio.gather(*(one(http, client) for client in range(clients))), limit)
        return Load(time.perf_counter() - began, waits, statuses)


@contextmanager
def served(batch_size: int, queue: int) -> Iterator[tuple[str, int]]:
    """Address and process of a server, which ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "unidecouple", "serve", "unified", "--port", str(port)]
    child = subprocess.Popen([*command, "--batch-size", str(batch_size), "--max-queue", str(queue)])
    try:
        for _ in range(600):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", child.pid
    finally:
        child.terminate()
        child.wait(60)


def resident(process: int) -> float:
    """MiB of memory that ``process`` holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def measure(clients: int, each: int, batch_size: int, limit: float) -> Result:
    """One at a time, then all at once, ``LOADS`` times, to see whether memory grows from load to load."""
    with served(batch_size, clients) as (url, process):
        asyncio.run(load(url, 4, 2, limit))  # what is laid out at the first request does not count
        alone = asyncio.run(load(url, 1, clients, limit))
        loads, memory = [], [resident(process)]
        for _ in range(LOADS):
            loads.append(asyncio.run(load(url, clients, each, limit)))
            memory.append(resident(process))
        health = httpx.get(f"{url}/health").json()
    rows = alone.rows("one at a time") + loads[-1].rows(f"{clients} clients")
    rows.append(Row("throughput / one at a time", rows[5].value / rows[0].value))
    rows.append(Row("memory after the last loads, the less of two / after the first", min(memory[-2:]) / memory[1]))
    length = Engine.load("unified", max_batch_size=1).builder.num_image_tokens
    settings = {
        "model": "unified",
        "clients": clients,
        "each": each,
        "batch_size": batch_size,
        "image_tokens": length,
        "threads": 1,
    }
    details = {
        "seconds": [one.seconds for one in (alone, *loads)],
        "statuses": [one.statuses for one in (alone, *loads)],
        "resident_mib": memory,
        "jobs_left": health["jobs"],
        "wall": "wall seconds, whatever else the machine does; not this file's CPU clock",
    }
    return Result("serve", "serve: both tasks on one model", settings, rows, details)


def main() -> None:
    """Run it, print the table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=64, help="at a time, half of each task (default: 64)")
    parser.add_argument("--each", type=int, default=4, help="requests of one client and load (default: 4)")
    parser.add_argument("--batch-size", type=int, default=16, help="of the server (default: 16)")
    parser.add_argument("--limit", type=float, default=240, help="seconds after which a load is given up (default: 240)")
    arguments = parser.parse_args()
    result = measure(arguments.clients, arguments.each, arguments.batch_size, arguments.limit)
    print(result.table())
    print(result.write())


if __name__ == "__main__":
    main()
