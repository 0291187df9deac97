"""The endpoint's OpenAPI document against schemathesis: valid and invalid requests for every operation.

    python -m pip install schemathesis
    python tests/bench/serve_fuzz.py [--examples 60]

Serves the miniature in this process on 127.0.0.1, asks it and checks each answer: no 5xx, a status, type, headers and
body that the document names. Prints answers by operation and status, and what was found; exit code 1 if anything was.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from rows import Answer, Row, add_option, write
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from sote.serve import api
from sote.serve.cascade import Local
from sote.serve.ingress import context_of
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart, ServeRecipe
from sote.train import standins

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
STAYS_OPEN = "/events"
TIMEOUT_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=60, help="of each operation and of each kind")
    add_option(parser)
    asked = parser.parse_args()
    statuses: Counter[tuple[str, int]] = Counter()
    found: dict[tuple[str, int], str] = {}
    with tempfile.TemporaryDirectory(prefix="sote-fuzz-") as folder:
        server = serving(Path(folder))
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        for operation in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
            each = operation.ok()
            if not each.path.endswith(STAYS_OPEN):
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    ask(each, mode, asked.examples, statuses, found)
            name = f"{each.method.upper()} {each.path}"
            print(name, {status: count for (at, status), count in statuses.items() if at == name}, flush=True)
        server.should_exit = True
    print(f"{statuses.total()} requests; {len(found)} findings")
    for (name, status), text in found.items():
        print(f"\n{name} {status}\n{text}")
    note = f"of {statuses.total()} requests"
    write(
        asked.json, Answer([Row("answers that the document does not say", len(found), "answers", "lower", note=note)])
    )
    sys.exit(1 if found else 0)


def serving(folder: Path) -> uvicorn.Server:
    """The miniature behind all routes, on a free port. Pictures are as small as they can be asked for."""
    standins.make(folder / "weights")
    part = ModelPart(prior=str(folder / "weights" / "prior"), decoder=str(folder / "weights" / "decoder"))
    recipe = ServeRecipe(
        run=str(folder / "run"),
        model=part,
        defaults=DefaultsPart(width=256, height=256, prior_steps=4, decoder_steps=4),
        limits=LimitsPart(max_pixels=256 * 384, max_images=1, max_body_bytes=2**20),
    )
    app = api.build(context_of(recipe, Local.load(part)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return server


def ask(
    operation: Any,
    mode: GenerationMode,
    examples: int,
    statuses: Counter[tuple[str, int]],
    found: dict[tuple[str, int], str],
) -> None:
    """Put `examples` requests of a kind to an operation, if it has any of that kind."""
    name = f"{operation.method.upper()} {operation.path}"

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        answer = case.call(timeout=TIMEOUT_SECONDS)
        statuses[name, answer.status_code] += 1
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as error:
            found.setdefault((name, answer.status_code), "\n".join(map(str, error.exceptions))[:1500])

    try:
        one()
    except Unsatisfiable:
        print(f"{name}: no {mode.value} requests can be made")


if __name__ == "__main__":
    main()
