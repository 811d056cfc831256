"""The process that asks a server for `serving`: `serving_load FILE`, with JSON of the arguments of `outcome`.

Every connection is a thread that sends its next request once the last is answered. Writes, as one line of JSON, what
each load got in each round.
"""

import concurrent.futures
import gc
import http.client
import json
import pathlib
import statistics
import sys
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

_TIMEOUT = 120  # seconds


def outcome(
    address: str, loads: Mapping[str, tuple[str, int]], seconds: float, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """What each load got, round by round.

    Args:
        address: of the model, as `serve` prints it.
        loads: name -> (body of its requests, number of connections); they take turns.
        seconds: of each load in each round; a tenth of it, untimed, comes first.
        rounds: how many.

    Returns:
        name -> a round each: requests, requests_per_second, and p50 and p99 in ms.

    Raises:
        ConnectionError: a request was not answered, or refused; the message has the number of them and the first.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in loads}
    for number in range(rounds + 1):
        for name in list(loads) if number % 2 else reversed(list(loads)):
            body, connections = loads[name]
            asked = _asked(address, name, body.encode(), connections, seconds if number else seconds / 10)
            if number:
                found[name].append(asked)
    return found


def _asked(address: str, name: str, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(connections) as pool:
        clients = [pool.submit(_client, address, body, began + seconds) for _ in range(connections)]
        answers = [answer for client in clients for answer in client.result()]
    elapsed = time.perf_counter() - began
    if errors := [error for _, error in answers if error]:
        raise ConnectionError(f"{name}: {len(errors)} of {len(answers)} requests failed, the first with: {errors[0]}")
    taken = [1000 * took for took, _ in answers]
    cuts = statistics.quantiles(taken, n=100) if len(taken) > 1 else taken * 99
    return {"requests": len(taken), "requests_per_second": len(taken) / elapsed, "p50": cuts[49], "p99": cuts[98]}


def _client(address: str, body: bytes, until: float) -> list[tuple[float, str]]:
    """(seconds, what was wrong or "") of each request on one connection, at least one; it ends with the first error."""
    url = urllib.parse.urlsplit(address)
    found: list[tuple[float, str]] = []
    connection = http.client.HTTPConnection(url.netloc, timeout=_TIMEOUT)
    while not found or (time.perf_counter() < until and not found[-1][1]):
        began = time.perf_counter()
        try:
            connection.request("POST", f"{url.path}:predict", body)
            with connection.getresponse() as answer:
                said: Any = json.load(answer)
                error = "" if answer.status == 200 else f"status {answer.status}, {said}"
        except (OSError, http.client.HTTPException, ValueError) as raised:
            error = f"{type(raised).__name__}, {raised}"
        found.append((time.perf_counter() - began, error))
    connection.close()
    return found


if __name__ == "__main__":
    gc.freeze()  # TensorFlow is loaded here too, and a collection that walks all of it would hold a client for 0.2 s
    given = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        sys.stdout.write(json.dumps(outcome(**given)) + "\n")
    except ConnectionError as error:
        sys.exit(str(error))
