"""What a hostile client sends: cases that schemathesis makes of the schema, and broken bodies."""

from __future__ import annotations

import http.client
import io
import json
import random
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from raysys.serve import Endpoint

_ARROW = "application/vnd.apache.arrow.stream"


def fuzz_openapi(endpoint: Endpoint, cases: int) -> int:
    """Send cases made of the OpenAPI schema; answers that are 5xx or do not follow it."""
    import hypothesis
    import schemathesis
    from hypothesis import HealthCheck

    schema = schemathesis.openapi.from_url(f"{endpoint.url}/openapi.json")
    wrong: list[object] = []
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        share = cases if operation.method.upper() == "POST" else 10

        @hypothesis.settings(
            max_examples=share, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            answer = case.call()
            try:
                case.validate_response(answer)
            except Exception as error:
                wrong.append(error)
            if answer.status_code >= 500:
                wrong.append(answer)

        send()
    for one in wrong[:3]:
        print(str(one)[:500])
    return len(wrong)


def fuzz_bodies(endpoint: Endpoint, cases: int, seed: int = 0) -> int:
    """Post broken v2 and Arrow bodies; answers that are 5xx, or none at all."""
    chance = random.Random(seed)
    address = urlsplit(endpoint.base_url)
    wrong = 0
    for number in range(cases):
        headers, path, body = _arrow(endpoint) if number % 2 else _v2(endpoint, chance)
        broken = _broken(body, chance)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        try:
            connection.request("POST", path, broken, headers)
            wrong += connection.getresponse().status >= 500
        except (OSError, http.client.HTTPException):
            wrong += 1
        finally:
            connection.close()
    return wrong


def _v2(endpoint: Endpoint, chance: random.Random) -> tuple[dict[str, str], str, bytes]:
    row = np.linspace(0, 1, 64)
    tensor: dict[str, object] = {"name": "x", "shape": [1, 64], "datatype": "FP64"}
    path = f"/v2/models/{endpoint.name}/infer"
    if chance.random() < 0.5:
        body = json.dumps({"inputs": [tensor | {"data": row.tolist()}]}).encode()
        return {"Content-Type": "application/json"}, path, body
    tensor["parameters"] = {"binary_data_size": row.nbytes}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = len(head) + (chance.randrange(-3, 4) if chance.random() < 0.3 else 0)
    headers = {"Inference-Header-Content-Length": str(length)}
    return headers, path, head + row.tobytes()


def _arrow(endpoint: Endpoint) -> tuple[dict[str, str], str, bytes]:
    values = pa.array(np.linspace(0, 1, 3 * 64))
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(values, 64)})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"Content-Type": _ARROW}, endpoint.route, sink.getvalue()


def _broken(body: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or added."""
    changed = bytearray(body)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(changed) + 1)
        span = chance.randrange(1, 16)
        match chance.randrange(4):
            case 0:
                changed[at : at + span] = chance.randbytes(len(changed[at : at + span]))
            case 1:
                del changed[at : at + span]
            case 2:
                changed[at:at] = changed[at : at + span]
            case _:
                changed[at:at] = chance.randbytes(span)
        if not changed:
            break
    return bytes(changed)
