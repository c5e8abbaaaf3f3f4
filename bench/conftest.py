"""What recorded runs of pytest-benchmark say: the machine as all records do, no host's name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from bench.record import machine


def pytest_benchmark_generate_machine_info(config: Any) -> dict[str, Any]:
    return machine()


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """The form of `bench.record.write`: medians, not every statistic of every case."""
    results = [
        {**b["extra_info"], "seconds": b["stats"]["median"], "rounds": b["stats"]["rounds"]}
        for b in output_json["benchmarks"]
    ]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": output_json["machine_info"],
        "results": results,
    }
    output_json.clear()
    output_json.update(document)
