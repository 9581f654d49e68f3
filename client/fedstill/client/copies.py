"""A copy of what left, for whoever wants to look: the values as they were told, before they were packed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fedstill.common.files import write_atomically
from fedstill.common.messages import Answer


def keep_copy(folder: Path, step: str, answer: Answer) -> Path:
    """Write an answer into a folder of its run; one that leaves again replaces its copy.

    The file is of safetensors' format: an array for each part of the knowledge of a task, as "TASK.values", and in the
    metadata everything else as JSON, under "answer".

    Raises:
        StorageError: if the disk refuses.
    """
    from safetensors.numpy import save

    arrays = {
        f"{name}.{part}": np.asarray(array, order="C")
        for name, task in answer.tasks.items()
        if task.knowledge is not None
        for part, array in task.knowledge.arrays().items()
    }
    told = {
        "client": answer.client,
        "run": answer.run,
        "round": answer.round,
        "attempt": answer.attempt,
        "version": answer.version,
        "tasks": {
            name: {
                "proxy-digest": task.proxy_digest,
                "examples": task.examples,
                "kind": task.knowledge.kind if task.knowledge is not None else "nothing",
                "header": dict(task.knowledge.header()) if task.knowledge is not None else {},
                "measures": dict(task.metrics),
            }
            for name, task in answer.tasks.items()
        },
    }
    path = folder / answer.run / f"{step.replace(' ', '-')}.safetensors"
    write_atomically(path, save(arrays, metadata={"answer": json.dumps(told)}), durable=False)
    return path
