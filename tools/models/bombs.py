"""Puts the largest believed number everywhere in every configuration: ``python -m tools.models.bombs [TYPE ...]``.

Each integer of a small configuration, in lists and inner objects too, becomes the largest that ``hf.limits`` lets pass
for a file as small as the model. Building the model must then be refused, or end, within the time and memory given
here. Prints the slowest and the largest, and whatever goes beyond.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

from tools import ROOT

SECONDS, MEGABYTES = 20, 4096  # that one building may take, beside what the process has
_AT_ONCE = 12


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every integer in a parsed document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, int) and not isinstance(inner, bool):
            yield (*path, key)
        yield from places(inner, (*path, key))


def put(config: dict[str, Any], path: tuple[Any, ...], value: int) -> dict[str, Any]:
    """Return a copy of a configuration with another number at a path."""
    copy = deepcopy(config)
    inner: Any = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def largest(limits: Any, path: tuple[Any, ...]) -> int:
    """Return the largest number that is believed at a path."""
    key = next(str(key) for key in reversed(path) if isinstance(key, str))
    return limits.most(key)


def tried(model_type: str) -> Iterator[dict[str, Any]]:
    """Try every integer of a type's configuration, each in a child of this process."""
    from aibit_format.hf.config import build_config, empty_model
    from aibit_format.hf.limits import Limits
    from tools.models.check import classes
    from tools.models.tiny import tiny_config

    try:
        config = json.loads(tiny_config(model_type).to_json_string(use_diff=False)) | {"model_type": model_type}
    except Exception:
        return  # docs/models.md names it
    config = {key: value for key, value in config.items() if value is not None}
    limits = Limits(100, 1 << 20)
    for name in classes(model_type)[:1]:
        for path in places(config):
            number = largest(limits, path)
            started = time.monotonic()
            child = os.fork()
            if not child:
                status = 1
                try:
                    here = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
                    resource.setrlimit(resource.RLIMIT_AS, (here + MEGABYTES * 2**20,) * 2)
                    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
                    changed = put(config, path, number)
                    empty_model(build_config(changed, limits), name, limits)
                    status = 0
                except MemoryError:
                    status = 3
                except Exception as error:
                    status = 3 if "memory" in str(error).lower() else 1
                finally:
                    os._exit(status)
            _, ended, used = os.wait4(child, 0)
            yield {
                "type": model_type, "key": ".".join(map(str, path)), "number": number,
                "status": os.waitstatus_to_exitcode(ended), "seconds": round(time.monotonic() - started, 2),
                "megabytes": used.ru_maxrss // 1024,
            }  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["--in-this-process"]:
        import transformers

        transformers.logging.set_verbosity_error()
        for model_type in sys.argv[2:]:
            for row in tried(model_type):
                print(json.dumps(row), flush=True)
        return 0
    from tools.models.check import types

    wanted = sys.argv[1:] or types()
    parts = [wanted[i : i + _AT_ONCE] for i in range(0, len(wanted), _AT_ONCE)]

    def run(part: list[str]) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "tools.models.bombs", "--in-this-process", *part]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        rows = [row for rows in threads.map(run, parts) for row in rows]
    beyond = [row for row in rows if row["status"] not in (0, 1)]
    for row in beyond:
        print("BEYOND", json.dumps(row))
    slow = sorted(rows, key=lambda row: row["seconds"])[-5:]
    large = sorted(rows, key=lambda row: row["megabytes"])[-5:]
    for row in (*slow, *large):
        print(json.dumps(row))
    refused = sum(row["status"] == 1 for row in rows)
    print(f"{len({row['type'] for row in rows})} types, {len(rows)} numbers: {refused} refused, {len(beyond)} beyond")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
