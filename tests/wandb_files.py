"""Reads the records of a W&B offline file, which W&B itself only syncs: a LevelDB log of protocol buffers."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

FILE_HEADER, BLOCK, RECORD_HEADER = 7, 32768, struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Any]:
    """Every record of the file."""
    data, position, parts = path.read_bytes(), FILE_HEADER, b""
    while position + RECORD_HEADER.size <= len(data):
        if BLOCK - position % BLOCK < RECORD_HEADER.size:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = RECORD_HEADER.unpack_from(data, position)
        position += RECORD_HEADER.size
        parts += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def wait_for_end(path: Path, seconds: float = 20.0) -> Path:
    """The same path, once the run's last record is in it: `finish` returns before W&B's own process has written it."""
    deadline = time.monotonic() + seconds
    while "exit" not in {record.WhichOneof("record_type") for record in read_records(path)}:
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.1)
    return path


def read_history(path: Path) -> list[dict[str, Any]]:
    """The logged rows."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in read_records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def read_run(path: Path) -> Any:
    """Project, group, id, name and configuration."""
    return next(record.run for record in read_records(path) if record.WhichOneof("record_type") == "run")


def read_config(path: Path) -> dict[str, Any]:
    """The run's configuration, nested."""
    return {item.key: json.loads(item.value_json) for item in read_run(path).config.update}


def read_summary(path: Path) -> dict[str, Any]:
    """The last value of everything that was summarized."""
    summary: dict[str, Any] = {}
    for record in read_records(path):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return summary


def read_axes(path: Path) -> dict[str, str]:
    """The x axis of each metric, or glob of metrics, that has one of its own."""
    metrics = [record.metric for record in read_records(path) if record.WhichOneof("record_type") == "metric"]
    return {metric.name or metric.glob_name: metric.step_metric for metric in metrics}


def read_system_metrics(path: Path) -> set[str]:
    """Names of what was measured of the machine."""
    kinds = [record.stats for record in read_records(path) if record.WhichOneof("record_type") == "stats"]
    return {item.key for stats in kinds for item in stats.item}


def media_files(path: Path) -> set[str]:
    """Names of the media beside the run's file, without what makes them unique."""
    return {file.name.partition("_")[0] + file.suffix for file in path.parent.glob("files/media/*/*") if file.is_file()}
